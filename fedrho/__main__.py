"""`python -m fedrho` is the console command."""

from fedrho.cli import main

if __name__ == "__main__":
    main()
