/** What a new user finds in the editor: something small to try completions on. */

export const SAMPLE_NAME = "try_me.py";

const BEFORE = `"""Type, pause, and press Tab to take the grey text. Ctrl+Right takes a word, Esc dismisses."""


def mean(values):
    """Return the arithmetic mean of a list of numbers."""
    return sum(values) / len(values)


def median(values):
    """Return the middle value of a list of numbers."""
    `;

const AFTER = `


print(mean([1, 2, 3, 4]), median([1, 2, 3, 4]))
`;

export const SAMPLE = BEFORE + AFTER;
export const SAMPLE_CURSOR = BEFORE.length;
