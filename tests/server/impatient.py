"""The HTTP server, which lets a start of a step wait for its turn no longer than a test wants to."""

from timestep.server import __main__, starting

if __name__ == "__main__":
    starting.TURN_SECONDS = 0.5
    __main__.main()
