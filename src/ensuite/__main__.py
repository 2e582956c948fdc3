"""``python -m ensuite`` is ``ensuite``; it is what torchrun starts."""

from ensuite.cli import main

if __name__ == "__main__":
    main()
