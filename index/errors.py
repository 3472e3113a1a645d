"""Every failure that Lookalike expects, in one tree.

A message says what was expected, what came and what to do. `code` is stable: clients and scripts may match
it. The command lines print the message as one line and exit 2; the service maps the class to a status
(`service/problems.py`). Whatever is not a LookalikeError is a bug and keeps its traceback.

    LookalikeError
    ├── InputError                 what a caller handed over cannot be used
    │   ├── ImageError
    │   │   ├── UnknownFormatError   not JPEG, PNG, WebP, BMP, GIF or TIFF by its first bytes
    │   │   ├── ImageTooLargeError   bytes, pixels or side over the limit
    │   │   ├── ImageShapeError      too small, or a strip
    │   │   └── ImageDecodeError     truncated or corrupt
    │   ├── VectorError              wrong dimension, not finite, zero
    │   ├── FilterError
    │   ├── ParameterError           k < 1, an id twice, …
    │   ├── ItemNotFoundError
    │   └── SourceError              no pictures, a missing folder, a broken table
    ├── EncoderError               the file is no encoder, is damaged, or answers wrongly here
    ├── EncoderMismatchError       the bank was built by another encoder
    ├── BankError
    │   ├── BankNotFoundError
    │   ├── BankDamagedError
    │   ├── BankFormatError          written by a newer version
    │   ├── BankBusyError            somebody else writes
    │   ├── BankReadOnlyError
    │   ├── BankHasNoLabelsError
    │   └── StorageFullError
    ├── TrainingError
    │   ├── RecipeError
    │   ├── CheckpointError
    │   └── CollapseError            embeddings became equal, or the loss is not a number
    ├── SettingsError              an option or a variable with an impossible value
    └── ExtraMissingError          an optional dependency, with the line that installs it
"""

from typing import ClassVar


class LookalikeError(Exception):
    """A failure with a remedy. Never raised itself."""

    code: ClassVar[str] = "error"


class InputError(LookalikeError):
    """What a caller handed over cannot be used."""

    code = "invalid_input"


class ImageError(InputError):
    """A picture cannot be used."""

    code = "image_invalid"


class UnknownFormatError(ImageError):
    """The first bytes belong to none of the accepted formats."""

    code = "image_unknown_format"


class ImageTooLargeError(ImageError):
    """More bytes, more pixels or a longer side than the limits allow, read from the header."""

    code = "image_too_large"


class ImageShapeError(ImageError):
    """Too small, or too long for its width."""

    code = "image_extreme_shape"


class ImageDecodeError(ImageError):
    """The header is fine, the pixels are truncated or corrupt."""

    code = "image_decode_failed"


class VectorError(InputError):
    """A vector of the wrong dimension, with NaN or infinity, or of length zero."""

    code = "vector_invalid"


class FilterError(InputError):
    """A filter that cannot be understood."""

    code = "filter_invalid"


class ParameterError(InputError):
    """A parameter outside its range."""

    code = "parameter_invalid"


class ItemNotFoundError(InputError):
    """No item has this id."""

    code = "item_not_found"


class SourceError(InputError):
    """A source of pictures is missing, empty or malformed."""

    code = "source_invalid"


class EncoderError(LookalikeError):
    """A file that is no encoder, a damaged one, or one that this runtime computes wrongly."""

    code = "encoder_invalid"


class EncoderMismatchError(LookalikeError):
    """The bank's vectors come from another encoder: comparing them would give confident nonsense."""

    code = "encoder_mismatch"


class BankError(LookalikeError):
    """A memory bank cannot be used."""

    code = "bank_invalid"


class BankNotFoundError(BankError):
    """The directory is missing or holds no bank."""

    code = "bank_not_found"


class BankDamagedError(BankError):
    """A file of the bank is missing, truncated or changed."""

    code = "bank_damaged"


class BankFormatError(BankError):
    """The bank was written by a newer Lookalike."""

    code = "bank_format_unsupported"


class BankBusyError(BankError):
    """Another process holds the bank open for writing."""

    code = "bank_busy"


class BankReadOnlyError(BankError):
    """A change was asked of a bank that was opened read-only or lies on a read-only volume."""

    code = "bank_read_only"


class BankHasNoLabelsError(BankError):
    """Classification was asked of a bank without labels."""

    code = "bank_has_no_labels"


class StorageFullError(BankError):
    """The disk is full; nothing of the change was acknowledged."""

    code = "storage_full"


class TrainingError(LookalikeError):
    """Pretraining or export cannot go on."""

    code = "training_failed"


class RecipeError(TrainingError):
    """An unknown recipe, an unknown key, or a value of the wrong type."""

    code = "recipe_invalid"


class CheckpointError(TrainingError):
    """A checkpoint that is missing, damaged or of another recipe."""

    code = "checkpoint_invalid"


class CollapseError(TrainingError):
    """The embeddings became equal, or the loss stopped being a number."""

    code = "training_collapsed"


class SettingsError(LookalikeError):
    """An option or an environment variable has an impossible value."""

    code = "settings_invalid"


class ExtraMissingError(LookalikeError):
    """An optional dependency is not installed; the message holds the line that installs it."""

    code = "extra_missing"
