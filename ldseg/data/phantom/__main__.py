"""`python -m ldseg.data.phantom`: write a cohort whose posterior is known."""

from ldseg.data.phantom.cohort import main

if __name__ == "__main__":
    main()
