"""The errors that polypstream raises on purpose.

    PolypstreamError
    ├── SettingsError    a key of config.yaml or of --set is unknown, of the wrong type or out of range
    ├── SourceError      a recording or stream cannot be opened, or no frame of it can be decoded
    │   └── TooLarge     a source is larger than the limit
    ├── OutputError      a result cannot be written: no permission, disk full
    │   └── ResultsExist a result exists already and may not be replaced
    ├── ModelError       a model file is missing, corrupt, or not a polypstream model
    ├── ProviderError    the requested execution provider is not available on this machine
    ├── DataError        a folder of images and masks does not have the layout that training and evaluation need
    ├── ReviewConflict   another reader has reviewed the same track or frame
    └── MissingExtra     a command needs an optional dependency that is not installed

Each message has one or two sentences. It says what is wrong, with which file or setting, and what to do.
The command line prints the message on standard error and exits with 1. A traceback is a bug.
"""

# Exit status of the command line after Ctrl-C.
INTERRUPTED = 130


class PolypstreamError(Exception):
    """Base class of all errors that are meant for the user."""


class SettingsError(PolypstreamError):
    """A setting is unknown, of the wrong type or out of range."""


class SourceError(PolypstreamError):
    """A source cannot be opened or decoded."""


class TooLarge(SourceError):
    """A source is larger than the limit."""


class OutputError(PolypstreamError):
    """A result cannot be written."""


class ResultsExist(OutputError):
    """Results exist already and may not be replaced. The caller adds how to allow it: an option, or an argument."""


class ModelError(PolypstreamError):
    """A model file is missing, corrupt or not a polypstream model."""


class ProviderError(PolypstreamError):
    """An execution provider is not available on this machine."""


class DataError(PolypstreamError):
    """A data set on disk does not have the expected layout."""


class MissingExtra(PolypstreamError):
    """A command needs an optional dependency that is not installed."""


class ReviewConflict(PolypstreamError):
    """Another reader has reviewed the same track or the same frame of it."""
