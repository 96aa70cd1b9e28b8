"""From sources to files: URIs, globs and folders, among them what Hugging Face `datasets` saves to disk.

`Dataset.save_to_disk` writes `state.json`, which names its `data-*.arrow` files, and other files that are no rows;
`DatasetDict.save_to_disk` writes `dataset_dict.json` and such a folder for each split. In those folders only the files
that `state.json` names are read. Rejected: every *.arrow file of the folder, since `map` leaves its caches there.
"""

from collections.abc import Sequence

import orjson

from llmray import storage
from llmray.errors import InputError, NotFoundError

_STATE = "state.json"
_SPLITS = "dataset_dict.json"


def expand(sources: Sequence[str]) -> list[str]:
    """Every file with rows that the URIs, globs and folders name, sorted, each once.

    Raises:
        NotFoundError: a source that names nothing, or a data file that a `datasets` folder should have and has not.
        InputError: a `state.json` beside Arrow files that does not say which of them are the data.
    """
    uris = storage.expand(sources)
    found = set(uris)
    for uri in uris:
        folder, _, name = uri.rpartition("/")
        if name == _SPLITS:
            found.discard(uri)
        elif name == _STATE:
            beside = {other for other in uris if other.rpartition("/")[0] == folder}
            if any(other.endswith(".arrow") for other in beside):
                found -= beside
                found |= set(_data_files(uri, folder, beside))
    return sorted(found)


def _data_files(state_uri: str, folder: str, there: set[str]) -> list[str]:
    try:
        names = [file["filename"] for file in orjson.loads(storage.read_bytes(state_uri))["_data_files"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{state_uri} does not name its data files (_data_files): name the .arrow files") from error
    files = [storage.join(folder, name) for name in names]
    for file in files:
        if file not in there:
            raise NotFoundError(f"{file} does not exist, though {_STATE} names it: save the dataset again")
    return files
