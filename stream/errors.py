"""Every error that a user can meet.

    PolypstreamError
    ├── SettingsError    a key of config.yaml or of --set is unknown, of the wrong type or out of range
    ├── SourceError      a recording or stream cannot be opened or holds no picture that can be decoded
    │   └── TooLarge     it is larger than it may be
    ├── OutputError      a result cannot be written: exists already, no permission, disk full
    ├── ModelError       a model file is missing, corrupt, or not one of ours
    ├── ProviderError    the execution provider asked for is not on this machine
    ├── DataError        a folder of pictures and masks is not as training and evaluation need it
    └── MissingExtra     a command needs an optional part that is not installed

Each message is one sentence or two for a person: what is wrong, with which file or setting, and what to do.
The command line prints it on standard error and exits with 1; a traceback is a bug.
"""


class PolypstreamError(Exception):
    """Base of all errors that are meant for the user's eyes."""


class SettingsError(PolypstreamError):
    """A setting is unknown, of the wrong type or out of range."""


class SourceError(PolypstreamError):
    """A source cannot be opened or decoded."""


class TooLarge(SourceError):
    """A source is larger than it may be."""


class OutputError(PolypstreamError):
    """A result cannot be written."""


class ModelError(PolypstreamError):
    """A model file is missing, corrupt or not one of ours."""


class ProviderError(PolypstreamError):
    """An execution provider is not available on this machine."""


class DataError(PolypstreamError):
    """A data set on disk is not in the expected shape."""


class MissingExtra(PolypstreamError):
    """A command needs an optional part that is not installed."""
