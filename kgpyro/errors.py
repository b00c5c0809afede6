"""The one exception that stands for a user's mistake."""


class InputError(ValueError):
    """Bad input, told in one sentence that names the culprit and the way out.

    The commands print the sentence and exit with code 2; in Python it is an ordinary ``ValueError``.
    """
