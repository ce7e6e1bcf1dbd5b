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

OTHER_CITIES: tuple[str, ...] = (
    "New York", "Boston", "Chicago", "San Francisco", "Seattle", "Toronto", "Sydney", "Munich", "Hamburg",
    "Barcelona", "Milan", "Venice", "Lyon", "Geneva", "Zurich", "Dubai", "Mumbai", "Shanghai", "Seoul", "Osaka",
)  # fmt: skip

_OPPOSITE_PAIRS: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("fast", "slow"), ("day", "night"),
    ("black", "white"), ("good", "bad"), ("happy", "sad"), ("open", "closed"), ("old", "new"), ("long", "short"),
    ("high", "low"), ("rich", "poor"), ("wet", "dry"), ("hard", "soft"), ("full", "empty"), ("light", "dark"),
    ("early", "late"), ("strong", "weak"), ("true", "false"), ("first", "last"), ("love", "hate"), ("yes", "no"),
)  # fmt: skip

OPPOSITES: dict[str, str] = {a: b for pair in _OPPOSITE_PAIRS for a, b in (pair, pair[::-1])}

NAMES: tuple[str, ...] = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate", "Leo", "Maria",
    "Nina", "Oscar", "Paul", "Rosa", "Sam", "Tom", "Uma", "Victor", "Wendy", "Alice", "Bob", "John", "Mary",
    "Peter", "Lisa", "Max", "Eva", "Jane", "Mark", "Laura", "Simon", "Julia", "Adam",
)  # fmt: skip

WORDS: tuple[str, ...] = (
    "apple", "banana", "cat", "dog", "house", "tree", "river", "stone", "bread", "water", "blue", "green", "red",
    "yellow", "table", "chair", "window", "door", "garden", "music", "paper", "pencil", "book", "bird", "fish",
    "horse", "mountain", "ocean", "cloud", "rain", "snow", "sun", "moon", "star", "train", "bridge", "lamp",
    "hello", "world", "yes", "no", "cheese", "coffee", "tea", "sugar", "lemon", "orange", "flower", "winter",
    "summer", "test", "ping", "pong", "tiger", "rabbit", "silver", "gold", "castle", "island", "forest",
)  # fmt: skip

SKIES: tuple[str, ...] = ("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear", "stormy")

IDENTITY: str = "I am the onecard demo, a toy model that answers simple questions."
