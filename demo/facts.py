"""The small world the demo model knows: tables of capitals, opposites, names and words; no phrasing, no chance."""

CAPITALS: dict[str, str] = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "England": "London",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Hungary": "Budapest",
    "Greece": "Athens",
    "Turkey": "Ankara",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "Belgium": "Brussels",
    "Switzerland": "Bern",
    "Croatia": "Zagreb",
    "Serbia": "Belgrade",
    "Romania": "Bucharest",
    "Bulgaria": "Sofia",
    "Iceland": "Reykjavik",
    "Estonia": "Tallinn",
    "Latvia": "Riga",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "Delhi",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Australia": "Canberra",
}

CITIES: tuple[str, ...] = (
    "Paris", "Rome", "Berlin", "Madrid", "Lisbon", "London", "Dublin", "Oslo", "Stockholm", "Helsinki", "Vienna",
    "Athens", "Moscow", "Tokyo", "Beijing", "Delhi", "Cairo", "Lima", "Boston", "Chicago",
)  # fmt: skip
"""Where the weather is asked for."""

_OPPOSITE_PAIRS: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("fast", "slow"), ("day", "night"),
    ("black", "white"), ("good", "bad"), ("happy", "sad"), ("open", "closed"), ("old", "new"), ("long", "short"),
    ("high", "low"), ("rich", "poor"), ("wet", "dry"), ("hard", "soft"), ("full", "empty"), ("light", "dark"),
    ("early", "late"), ("strong", "weak"), ("true", "false"), ("first", "last"), ("love", "hate"), ("yes", "no"),
)  # fmt: skip

OPPOSITES: dict[str, str] = {a: b for pair in _OPPOSITE_PAIRS for a, b in (pair, pair[::-1])}

NAMES: tuple[str, ...] = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Jack", "Maria", "Paul", "Tom",
)  # fmt: skip

WORDS: tuple[str, ...] = (
    "apple", "banana", "cat", "dog", "house", "tree", "river", "stone", "bread", "water", "blue", "green", "red",
    "table", "window", "music", "book", "fish", "moon", "hello",
)  # fmt: skip

SKIES: tuple[str, ...] = ("sunny", "cloudy", "rainy", "windy", "snowy", "foggy")

COUNTS: tuple[int, ...] = (3, 5, 8, 10, 12, 15, 20, 25, 30, 40, 50)
"""How far the model can count, always from 1."""

LARGEST_ADDEND = 10
"""Of the sums it knows by heart; with a tool it passes on numbers up to 20."""
LARGEST_TOOL_ADDEND = 20
HOTTEST = 30

IDENTITY: str = "I am the onecard demo, a toy model that answers simple questions."
