"""`python -m region_learner COMMAND`, the same as `region-learner COMMAND`."""

from .cli import main

if __name__ == "__main__":
    main()
