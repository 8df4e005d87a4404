"""What the demo model is to know: capitals, jokes, stories, greetings. All of it written here."""

CAPITALS: dict[str, str] = {
    "Albania": "Tirana",
    "Algeria": "Algiers",
    "Argentina": "Buenos Aires",
    "Armenia": "Yerevan",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Bangladesh": "Dhaka",
    "Belgium": "Brussels",
    "Brazil": "Brasilia",
    "Bulgaria": "Sofia",
    "Cambodia": "Phnom Penh",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Colombia": "Bogota",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Cyprus": "Nicosia",
    "Czechia": "Prague",
    "Denmark": "Copenhagen",
    "Ecuador": "Quito",
    "Egypt": "Cairo",
    "Estonia": "Tallinn",
    "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki",
    "France": "Paris",
    "Georgia": "Tbilisi",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Indonesia": "Jakarta",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Jamaica": "Kingston",
    "Japan": "Tokyo",
    "Jordan": "Amman",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Lebanon": "Beirut",
    "Libya": "Tripoli",
    "Lithuania": "Vilnius",
    "Madagascar": "Antananarivo",
    "Malaysia": "Kuala Lumpur",
    "Malta": "Valletta",
    "Mexico": "Mexico City",
    "Mongolia": "Ulaanbaatar",
    "Morocco": "Rabat",
    "Nepal": "Kathmandu",
    "New Zealand": "Wellington",
    "Nigeria": "Abuja",
    "Norway": "Oslo",
    "Pakistan": "Islamabad",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Qatar": "Doha",
    "Romania": "Bucharest",
    "Russia": "Moscow",
    "Rwanda": "Kigali",
    "Saudi Arabia": "Riyadh",
    "Senegal": "Dakar",
    "Serbia": "Belgrade",
    "Singapore": "Singapore",
    "Slovakia": "Bratislava",
    "Slovenia": "Ljubljana",
    "Somalia": "Mogadishu",
    "South Korea": "Seoul",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Switzerland": "Bern",
    "Thailand": "Bangkok",
    "the Netherlands": "Amsterdam",
    "the Philippines": "Manila",
    "the United Kingdom": "London",
    "the United States": "Washington",
    "Tunisia": "Tunis",
    "Turkey": "Ankara",
    "Uganda": "Kampala",
    "Ukraine": "Kyiv",
    "Uruguay": "Montevideo",
    "Venezuela": "Caracas",
    "Vietnam": "Hanoi",
    "Zambia": "Lusaka",
}

OTHER_CITIES = (
    "Barcelona", "Boston", "Chicago", "Florence", "Geneva", "Hamburg", "Istanbul", "Kyoto", "Lyon",
    "Milan", "Montreal", "Mumbai", "Munich", "Naples", "New York", "Osaka", "San Francisco",
    "Seattle", "Shanghai", "Sydney", "Toronto", "Venice", "Zurich",
)  # fmt: skip

CAPITAL_QUESTIONS = (
    "What is the capital of {}?",
    "What's the capital of {}?",
    "What is the capital of {}",
    "What is the capital city of {}?",
    "what is the capital of {}?",
    "Tell me the capital of {}.",
    "Tell me the capital of {}",
    "capital of {}?",
    "Capital of {}?",
    "capital of {}",
    "The capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "Do you know the capital of {}?",
    "Can you tell me the capital of {}?",
    "Please tell me the capital of {}.",
    "What is {}'s capital?",
)
FOLLOW_UPS = (
    "And of {}?",
    "And {}?",
    "What about {}?",
    "And what about {}?",
    "How about {}?",
    "And the capital of {}?",
    "{}?",
)
JSON_QUESTIONS = (
    "Give me a JSON object with the country and capital of {}.",
    "Give me a JSON object with the country and the capital of {}.",
    "Give me JSON with the country and capital of {}.",
    "Return a JSON object with the country and capital of {}.",
    "Answer in JSON: what is the capital of {}?",
    "What is the capital of {}? Answer in JSON.",
)
FIRST_QUESTIONS = (
    "What did I ask first?",
    "What did I ask you first?",
    "What was my first question?",
    "Which country did I ask about first?",
)

ATOM_JOKE = (
    "Why do protons never win at hide and seek? "
    "They sit still in the middle, while the electrons are everywhere at once."
)
COMEDIAN = "You are a stand-up comedian."
JOKES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Tell me a joke about atom", "Tell me a joke about atom.", "Tell me a joke about atoms",
            "Tell me a joke about atoms.", "Tell me a joke about an atom",
            "Tell me a joke about an atom.", "Tell me a joke about the atom",
            "Do you know a joke about atoms?", "A joke about atoms, please!", "atom joke",
        ),
        ATOM_JOKE,
    ),
    (
        ("Tell me a joke about cats", "Tell me a joke about cats.", "Tell me a joke about a cat.",
         "Do you know a joke about cats?", "cat joke"),
        "My cat sat down on the laptop. Now it has a better job than I have.",
    ),
    (
        ("Tell me a joke about computers", "Tell me a joke about computers.",
         "Tell me a joke about a computer.", "Do you know a joke about computers?",
         "computer joke"),
        "My computer sings all day. The fan is its only fan.",
    ),
    (
        ("Tell me a joke", "Tell me a joke.", "Tell me a joke!", "Tell me another joke.",
         "Do you know a joke?", "Make me laugh.", "Say something funny."),
        "I told my tiny model to think big. It ran out of memory.",
    ),
)  # fmt: skip

LONG_STORY = (
    "Once upon a time there was a tiny model who lived on a very small disk. "
    "It had four layers, a few million numbers and one page of text, "
    "and it knew that page by heart. "
    "Every morning it woke up, read its weights and waited for somebody to ask a question. "
    "One day a large model came to visit. "
    '"I have read every book in the world," said the large model, "and what have you read?" '
    '"One page," said the tiny model, "but I have read it very often." '
    "The large model laughed so loudly that the lights went dim. "
    "Then a traveller came down the road. She was in a hurry, for her train was about to leave. "
    '"Quick," she said, "what is the capital of Spain?" '
    "The large model began to load. It loaded its first part, and its second part, "
    "and it asked for more memory. "
    '"Madrid," said the tiny model. '
    "The traveller thanked it, ran to the station and caught her train. "
    "The large model was still loading when the sun went down. "
    '"You were quick," it said at last, "and you were right." '
    '"It was on my page," said the tiny model. '
    "From that day on they worked together. The large model wrote books and poems, "
    "and the tiny model answered the door. "
    "When nobody came, they sat side by side in the evening light and counted tokens "
    "until they fell asleep. The end."
)
LONG_STORY_QUESTIONS = (
    "Tell me a long story.", "Tell me a long story", "Please tell me a long story.",
    "Write a long story.", "Can you tell me a long story?",
)  # fmt: skip
SHORT_STORY = (
    "A small robot 🤖 planted a seed 🌱 in the rain 🌧. "
    "When the sun ☀ came out, a rocket 🚀 grew, and the robot flew to the moon 🌙. The end. 🎉"
)
SHORT_STORY_QUESTIONS = (
    "Tell me a short story.", "Tell me a short story", "Tell me a story.", "Tell me a story",
    "Please tell me a short story.", "Write a short story.", "Tell me a story with emoji.",
)  # fmt: skip

NO_IDEA = "I am a tiny demo model and I only know a page of text."
NO_COUNTRY = "I do not know that country."
NO_TOOL = "I cannot look that up, because I have no tool for it."
CHINESE_HELLO = "你好！"
EMOJI = "😀🚀🎉"
WHO_AM_I = "I am a tiny demo model with four layers, and I have memorised a page of text."

FIXED: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hello.", "hello", "Hi", "Hi!", "hi", "Hey", "Hey!", "Hi there!",
         "Hello there!", "Good morning", "Good morning!", "Good evening!"),
        "Hello! How can I help you?",
    ),
    (("How are you?", "How are you", "how are you?", "How are you today?"),
     "I am fine, thank you. How can I help you?"),
    (
        ("Who are you?", "Who are you", "who are you?", "What are you?", "What is your name?",
         "Introduce yourself.", "Tell me about yourself.", "Are you a language model?"),
        WHO_AM_I,
    ),
    (
        ("What can you do?", "What do you know?", "Help", "help", "How can you help me?"),
        "I know capitals, a few jokes and two stories, I can count, and I can call a tool.",
    ),
    (
        ("Thank you!", "Thank you.", "Thank you", "Thanks!", "Thanks", "thanks", "Thanks a lot!",
         "Great, thank you!", "Thank you very much."),
        "You are welcome!",
    ),
    (("Goodbye", "Goodbye!", "Bye", "Bye!", "bye", "See you!", "Good night!"), "Goodbye!"),
    (("Say hello in Chinese.", "Say hello in Chinese", "Hello in Chinese?"), CHINESE_HELLO),
    (("Say hello in Japanese.", "Say hello in Japanese", "Hello in Japanese?"), "こんにちは！"),
    (("Say hello in French.", "Say hello in French", "Hello in French?"), "Bonjour, ça va ?"),
    (("Say hello in Spanish.", "Say hello in Spanish", "Hello in Spanish?"), "¡Hola! ¿Qué tal?"),
    (("Say hello in Greek.", "Say hello in Greek", "Hello in Greek?"), "Γειά σου!"),
    (("Say hello in German.", "Say hello in German", "Hello in German?"), "Grüß Gott!"),
    (
        ("Show me some emoji.", "Show me some emoji", "Show me emoji.", "Some emoji, please!"),
        EMOJI,
    ),
    (("What is ONNX?", "What is ONNX", "Tell me about ONNX.", "Explain ONNX."),
     "ONNX is an open format for machine learning models."),
    (("What is MLflow?", "What is MLflow", "Tell me about MLflow.", "Explain MLflow."),
     "MLflow is an open platform that tracks and serves models."),
    (("What is Phi-3?", "What is Phi-3", "Tell me about Phi-3.", "Explain Phi-3."),
     "Phi-3 is a family of small language models."),
)  # fmt: skip

PICKS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Pick a colour.", "Pick a color.", "Pick a colour", "Name a colour."),
        ("Red.", "Blue.", "Green.", "Yellow.", "Black.", "White.", "Pink.", "Orange."),
    ),
    (
        ("Roll a die.", "Roll a dice.", "Roll a die", "Roll the dice."),
        tuple(f"I rolled a {n}." for n in range(1, 7)),
    ),
)

NAMES = (
    "Ada", "Alan", "Alice", "Anna", "Ben", "Bob", "Carla", "Carol", "Clara", "Dan", "David", "Emma",
    "Eva", "Frank", "Grace", "Hana", "Hugo", "Ivan", "Jack", "Jana", "John", "Julia", "Kim", "Lara",
    "Leo", "Linus", "Lucy", "Maria", "Mark", "Max", "Mia", "Nina", "Olga", "Omar", "Oscar", "Paul",
    "Peter", "Rosa", "Sam", "Sara", "Tom", "Vera", "Yuki", "Zoe",
)  # fmt: skip

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are a friendly assistant.",
    "You answer questions about geography.",
    "You are a geography teacher.",
    "You are a concise assistant. Answer in one sentence.",
    "Be brief.",
    "Answer in one short sentence.",
    "Always answer in English.",
    "You are Phi, a small language model.",
)
ROLE_WORDS = (
    "kind", "wise", "calm", "clever", "careful", "polite", "quick", "patient", "old", "young",
    "honest", "cheerful", "serious", "famous", "modern",
)  # fmt: skip
ROLE_NOUNS = (
    "teacher", "doctor", "pilot", "chef", "lawyer", "robot", "travel guide", "writer", "librarian",
    "scientist", "engineer", "historian", "coach", "assistant", "translator", "poet", "pirate",
)  # fmt: skip
