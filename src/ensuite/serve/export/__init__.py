"""A run as one ONNX graph, encoder and top-k, that serves without the model's code: export, check, engine."""
