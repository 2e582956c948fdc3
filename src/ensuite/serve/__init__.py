"""How does a request become recommendations? The request API and the search for the best k."""
