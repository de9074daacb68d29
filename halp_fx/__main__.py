"""`halp-fx`, which is `python -m halp_fx`."""

import sys


def main() -> None:
    """Entry point. Ctrl-C is words from the start: also while the commands are imported."""
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        print("interrupted\nno result was written", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
