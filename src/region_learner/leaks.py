"""Finds secrets and paths of this machine in text that is about to be published."""

import getpass
import re
from pathlib import Path
from typing import NamedTuple


class Leak(NamedTuple):
    """Something that must not be published: its `line`, counted from 1, and `what` it is, without the secret."""

    line: int
    what: str


# Well-known forms of keys: their names in messages, and their patterns.
_SECRETS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}|\bhf_oauth_[\w.-]{20,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22,}",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google API key": r"\bAIza[\w-]{35}",
    "a Google token": r"\bya29\.[\w-]{20,}",
    "an npm token": r"\bnpm_[A-Za-z0-9]{36}",
    "a Docker token": r"\bdckr_pat_[\w-]{20,}",
    "an Azure key": r"\bAccountKey=[\w+/]{40,}=*",
    "an API key": r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{32,}",
    "a Stripe key": r"\b[rs]k_live_[A-Za-z0-9]{16,}",
    "a PyPI token": r"\bpypi-[\w-]{50,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a Slack webhook": r"\bhooks\.slack\.com/(?:services|workflows|triggers)/[\w/-]{20,}",
    "a JSON Web Token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "a bearer token": r"(?i)\bbearer[ \t]+(?=[^\s\d]*\d)[\w.~+/-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']+@",
    # A value without quotes must have a digit, unlike words ("password: required") and code.
    "a value of a secret setting": r"(?i)(?:hub_?token|api[_-]?key|secret[_-]?(?:access[_-]?)?key|access[_-]?token"
    r"|auth[_-]?token|client[_-]?secret|passw(?:or)?d)\\?[\"']?[ \t]*[:=][ \t]*"
    r"(?:\\?[\"'](?![<$*{])[^\s\"']{8,}|(?=[A-Za-z_+/-]*\d)(?=\d*[A-Za-z_+/-])[\w+/-]{8,}=*(?=[\s,;}\"']|$))",
}  # fmt: skip

# Directories that contain users and their data, and directories that every machine has.
_OF_USERS = {
    "home", "Users", "root", "mnt", "media", "scratch", "tmp", "gpfs", "lustre", "nfs", "fsx", "efs", "Volumes",
    "workspace",
}  # fmt: skip
_OF_SYSTEMS = ["bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr"]

_ADDRESS = re.compile(r"\b(?!file:)[a-z][a-z0-9+.-]+://[^\s\"'<>)\]]+", re.IGNORECASE)
_POSIX = re.compile(r"(?:(?<=file://)|(?<![\w./~<)}-])(?<!\b[A-Za-z]:))/([\w.+@-]+)/([\w.+@-]+)[\w.+@/-]*")
_WINDOWS = re.compile(r"(?<![\w])[A-Za-z]:(?:\\\\|\\|/)[\w. -]+(?:\\\\|\\|/)[\w.-]+")
# \\server\share\..., with each backslash doubled in JSON. Names of one letter would be escapes such as \\n\t.
_SERVER = re.compile(r"(?<!\\)(?:\\{2}[\w.-]{2,}\\[\w.$-]{2,}\\[\w.$-]{2,}|\\{4}[\w.-]{2,}\\\\[\w.$-]{2,})")


def leaks(text: str) -> list[Leak]:
    """
    Returns the secrets and the paths of this machine in a text.

    Secrets are keys of well-known forms. Paths are absolute paths in directories of users, absolute paths whose first
    two parts exist on this machine, all paths that contain the home directory or the name of the user, and paths of
    Windows. Addresses are not paths.

    Example:

        leaks('{"model": "/home/me/start"}')  # [Leak(line=1, what="the path '/home/me/start'")]
    """
    found = []
    text = text.replace("\\/", "/")  # as some write JSON
    for what, pattern in _SECRETS.items():
        for match in re.finditer(pattern, text):
            found.append(Leak(_line(text, match.start()), f"{what} ({match.group()[:6]}…)"))
    without_addresses = _ADDRESS.sub(lambda match: " " * len(match.group()), text)
    for of_paths in (_POSIX, _WINDOWS, _SERVER):
        for match in of_paths.finditer(without_addresses):
            if of_paths is not _POSIX or _is_of_this_machine(match):
                found.append(Leak(_line(text, match.start()), f"the path {match.group().strip()[:80]!r}"))
    return sorted(set(found))


def _is_of_this_machine(match: re.Match) -> bool:
    first, second = match[1], match[2]
    if first in _OF_USERS:
        return True
    home = str(Path.home())
    if match.group().startswith(home + "/") and home != "/":
        return True
    if first in _OF_SYSTEMS:
        return False
    return f"/{_user()}/" in match.group() or Path("/", first, second).exists()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without such a user
        return "\0"


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
