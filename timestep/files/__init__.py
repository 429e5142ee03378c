"""Files of clients: objects in storage, each with a row in our database."""

from timestep.files.files import Files

__all__ = ["Files"]
