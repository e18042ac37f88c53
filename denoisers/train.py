"""``python -m denoisers.train``: see :func:`denoisers.training.train`."""

from denoisers.training import main

if __name__ == "__main__":
    main()
