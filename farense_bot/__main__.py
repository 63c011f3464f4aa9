"""`python -m farense_bot`: the same as the `farense-bot` command; child processes start so."""

from farense_bot import main

if __name__ == "__main__":
    main()
