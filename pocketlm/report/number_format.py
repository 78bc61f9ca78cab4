"""Numbers as a reader sees them."""

MINUS = "\N{MINUS SIGN}"
MISSING = "–"
TIGHT = "\N{NO-BREAK SPACE}"  # between a number and its unit


def percent(share: float | None) -> str:
    """0.7333 as 73.3 %."""
    return MISSING if share is None else f"{100 * share:.1f}{TIGHT}%"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points: -0.0125 as −1.2 points."""
    return MISSING if difference is None else f"{signed(100 * difference, 1)}{TIGHT}points"


def signed(value: float, decimals: int) -> str:
    """+1.3, −0.2, and 0.0 without a sign."""
    digits = f"{abs(value):,.{decimals}f}"
    if not any(digit in digits for digit in "123456789"):
        return digits
    return f"{'+' if value > 0 else MINUS}{digits}"


def count(value: float) -> str:
    """12,345 in full; 1.23 M from a million on."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.2f}{TIGHT}{unit}"
    return f"{value:,.0f}"


def size(num_bytes: float) -> str:
    """Bytes in decimal units, three digits of them: 812 kB, 1.25 GB."""
    for unit_bytes, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit_bytes:
            in_unit = num_bytes / unit_bytes
            decimals = 0 if in_unit >= 99.95 else 1 if in_unit >= 9.995 else 2
            return f"{in_unit:,.{decimals}f}{TIGHT}{unit}"
    return f"{num_bytes:,.0f}{TIGHT}bytes"


def duration(seconds: float) -> str:
    """4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f}{TIGHT}s"
    minutes, rest = divmod(round(seconds), 60)
    parts = (
        (minutes, "min", rest, "s") if minutes < 60 else (minutes // 60, "h", minutes % 60, "min")
    )
    return TIGHT.join([str(parts[0]), parts[1], f"{parts[2]:02}", parts[3]])


def significant(value: float) -> str:
    """About three significant digits: 0.00312, 4.5, 120."""
    return f"{value:.3g}".replace("-", MINUS)
