def mean(values):
    """Return the arithmetic mean of a list of numbers."""
    total = 0
    count = 0
    for value in values:
        
    return total / count


print(mean([1, 2, 3]))
