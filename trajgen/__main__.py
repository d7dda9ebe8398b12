"""``python -m trajgen``."""

from trajgen.cli import main

if __name__ == "__main__":
    main()
