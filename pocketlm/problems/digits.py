"""Sums and differences of numbers below 100, written out one digit at a time."""


def add(a: int, b: int) -> str:
    """The line that adds two numbers below 100: '38+47: 8+7=15, 1+3+4=8, 85'."""
    if a < 10 and b < 10:
        return f"{a}+{b}={a + b}"
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carry = "1+" if ones > 9 else ""
    return (
        f"{a}+{b}: {a % 10}+{b % 10}={ones}, {carry}{a // 10}+{b // 10}={tens + (ones > 9)}, "
        f"{a + b}"
    )


def subtract(a: int, b: int) -> str:
    """The line that takes b from a, 0 <= b <= a < 100: '52-38: 12-8=4, 5-1-3=1, 14'."""
    if a < 10:
        return f"{a}-{b}={a - b}"
    borrow = a % 10 < b % 10
    top = a % 10 + 10 * borrow
    tens = f"{a // 10}{'-1' if borrow else ''}-{b // 10}={a // 10 - borrow - b // 10}"
    return f"{a}-{b}: {top}-{b % 10}={top - b % 10}, {tens}, {a - b}"
