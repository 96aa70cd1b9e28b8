"""Real usual traffic for the monitor: questions about the standard library, and real unusual ones."""

import importlib
import random

MODULES = ("os", "json", "math", "string", "random", "re", "socket", "ast", "logging", "asyncio", "email", "tkinter")
MODULES += ("unittest", "decimal", "inspect", "pathlib", "subprocess", "threading", "collections", "typing")

SHAKESPEARE = """Before we proceed any further, hear me speak.
You are all resolved rather to die than to famish?
First, you know Caius Marcius is chief enemy to the people.
Let us kill him, and we'll have corn at our own price.
Would you proceed especially against Caius Marcius?
Consider you what services he has done for his country?
Very well; and could be content to give him good report for't.
What he cannot help in his nature, you account a vice in him.
If I must not, I need not be barren of accusations.
What shouts are these? The other side o' the city is risen.
Our business is not unknown to the senate; they have had inkling.
Why, masters, my good friends, mine honest neighbours, will you undo yourselves?
I tell you, friends, most charitable care have the patricians of you.
There was a time when all the body's members rebell'd against the belly.
Wherefore art thou Romeo? Deny thy father and refuse thy name.
Shall I compare thee to a summer's day? Thou art more lovely and more temperate.
Now is the winter of our discontent made glorious summer by this sun of York.
The quality of mercy is not strain'd, it droppeth as the gentle rain from heaven.
Tomorrow, and tomorrow, and tomorrow, creeps in this petty pace from day to day.
Friends, Romans, countrymen, lend me your ears; I come to bury Caesar.""".splitlines()


def questions(seed: int = 0) -> list[str]:
    """What people ask a documentation assistant, in a seeded order."""
    names = set()
    for module in MODULES:
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        names.update(f"{module}.{name}" for name in dir(found) if not name.startswith("_"))
    texts = [f"What does `{name}` do?" for name in sorted(names)]
    random.Random(seed).shuffle(texts)
    return texts
