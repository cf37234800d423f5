"""`python -m maskformer` runs the command line, also under torchrun."""

from maskformer.cli import main

if __name__ == "__main__":
    main()
