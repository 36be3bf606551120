"""Lines of shell in the documentation, and whether the programs in them would take them."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from typing import Any, Final

import typer.main

from fedrho import cli
from tests.docs.pages import TOP, Block

PROGRAM: Final = typer.main.get_command(cli.app)
OUTSIDE: Final = {
    "cp": "copies files",
    "export": "of the shell itself",
    "kubectl": "shows what a cluster would be told; the manifests are checked by tests/test_deploy.py",
    "openssl": "puts a certificate and its key into one file, for a browser",
    "pip": "installs",
    "ray": "starts a cluster; comes with fedrho[ray]",
    "promtool": "comes with Prometheus; checks a file of rules",
    "tensorboard": "comes with TensorFlow; shows the events that a study writes",
}
"""Programs that are not ours, each with the reason that it may stand in a block without being checked further."""
UV_TAKES: Final = ("--python", "--extra", "--group", "--with", "--project")


class Unknown(Exception):
    """A line that a program would refuse."""


def lines(block: Block) -> Iterator[str]:
    """The commands of a block: continued lines joined; of a console, what follows the prompt."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        if words(line):
            yield line


def words(line: str) -> list[str]:
    """What a shell would hand over, without comments."""
    return shlex.split(line, comments=True)


def with_options(line: str, options: str) -> str:
    """With these instead of the same ones as printed, or of those with the same KEY of KEY=VALUE, and without the line's comment.

    As it is, where its command does not know all of them.
    """
    line = re.sub(r"\s+#.*$", "", line)
    given = re.findall(r"(-\S+)(?: (?!-)(\S+))?", options)
    known = known_options(words(line))
    if known is not None and not {name for name, _ in given} <= known:
        return line
    for name, value in given:
        key, set_to, _ = value.partition("=")
        line = re.sub(rf"\s+{name} {re.escape(key)}=\S*" if set_to else rf"\s+{name}(?: (?!-)\S+)?(?=\s|$)", "", line)
    return f"{line.rstrip()} {options}"


def known_options(command: list[str]) -> set[str] | None:
    """Of a script, or of the last command of fedrho that the words lead to; None of a program that is not ours."""
    if command[0] == "pip":
        return set()
    if command[0] == "python":
        return script_options((TOP / command[1]).read_text(encoding="utf-8"))
    if command[0] not in ("fedrho", "./dev"):
        return None
    program: Any = PROGRAM
    rest = command[1:]
    while rest and hasattr(program, "commands") and rest[0] in program.commands:
        program = program.commands[rest.pop(0)]
    if command[1] == "simulate" and hasattr(program, "commands"):  # `simulate STUDY.toml` is `simulate run STUDY.toml`
        program = program.commands["run"]
    return {option for parameter in program.params for option in (*parameter.opts, *parameter.secondary_opts)}


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line by themselves, of pipes and lists; without redirections and settings of the environment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    command: list[str] = []
    tokens = iter(lexer)
    for token in tokens:
        if set(token) <= set("|&;"):
            yield command
            command = []
        elif set(token) <= set("<>"):
            next(tokens)
        elif command or not re.match(r"[A-Z_]+=", token):
            command.append(token)
    if command:
        yield command


def check_line(line: str) -> None:
    """Raises Unknown, as `check` does for each command."""
    for command in commands(line):
        check(command)


def check(command: list[str]) -> None:
    """Raises Unknown where the program does not exist, or would not take its arguments."""
    name, *rest = command
    if name == "fedrho":
        check_fedrho(rest)
    elif name == "./dev":
        check_dev(rest)
    elif name == "uv":
        check_uv(rest)
    elif name in ("python", "python3"):
        check_script(rest)
    elif name not in OUTSIDE:
        raise Unknown(f"{name}: not ours, and not among the programs that may stand here")


def check_fedrho(arguments: list[str], program: Any = PROGRAM, name: str = "fedrho", parent: Any = None) -> None:
    """As the program itself reads its arguments, to the end: types, bounds and choices too; runs nothing."""
    if arguments in (["--install-completion"], ["--show-completion"]):  # done as they are read, to the caller's shell
        if any(arguments[0] in parameter.opts for parameter in program.params):
            return
        raise Unknown(f"{name}: no {arguments[0]}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            context = program.make_context(name, list(arguments), parent=parent)
    except (Exception, SystemExit) as error:
        if 0 in (getattr(error, "exit_code", None), getattr(error, "code", None)):  # --help
            return
        raise Unknown(f"{name}: {getattr(error, 'message', error)}") from error
    if not hasattr(program, "commands"):
        return
    left = [*context._protected_args, *context.args]
    if not left:
        return
    try:
        sub, found, rest = program.resolve_command(context, left)
    except Exception as error:
        raise Unknown(f"{name} {left[0]}: no such command") from error
    check_fedrho(rest, found, f"{name} {sub}", context)


def dev_commands() -> set[str]:
    """What `./dev` lists, of its own and of fedrho's."""
    usage = (TOP / "dev").read_text(encoding="utf-8").partition("usage: ")[2].partition("USAGE\n")[0]
    return set(re.findall(r"[a-z]+", " ".join(re.findall(r"^  ([a-z][a-z, ]*?)(?:  |$)", usage, re.MULTILINE))))


def check_dev(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in dev_commands():
        raise Unknown(f"./dev {' '.join(arguments[:1])}: not among what ./dev lists")
    if arguments[0] in PROGRAM.commands:  # type: ignore[attr-defined]
        check_fedrho(arguments)


def check_uv(arguments: list[str]) -> None:
    verb, *rest = arguments
    if verb == "sync":
        return
    if verb != "run":
        raise Unknown(f"uv {verb}: only run and sync stand in these pages")
    while rest and rest[0].startswith("-"):
        rest = rest[2:] if rest[0] in UV_TAKES else rest[1:]
    check(rest)


def check_script(arguments: list[str]) -> None:
    """A benchmark: that it is there, and that it knows each option."""
    path = TOP / arguments[0]
    if not path.is_file():
        raise Unknown(f"python {arguments[0]}: no such file")
    known = script_options(path.read_text(encoding="utf-8"))
    for option in (argument.partition("=")[0] for argument in arguments[1:] if argument.startswith("-")):
        if option not in known:
            raise Unknown(f"python {arguments[0]} {option}: no such option")


def script_options(source: str) -> set[str]:
    """The options that a script gives its argparse."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    adding = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return {str(value.value) for call in adding for value in call.args if isinstance(value, ast.Constant)}


def check_mentioned(arguments: list[str]) -> None:
    """A command in running text: its words lead to a command, whose options those with it are."""
    program: Any = PROGRAM
    rest = list(arguments)
    while rest and hasattr(program, "commands") and rest[0] in program.commands:
        program = program.commands[rest.pop(0)]
    if rest and rest[0].isalpha() and rest[0].islower() and hasattr(program, "commands"):
        raise Unknown(f"{rest[0]}: no such command")
    if hasattr(program, "commands") and "run" in program.commands and rest:  # `simulate STUDY.toml` is `simulate run STUDY.toml`
        program = program.commands["run"]
    known = {option for parameter in program.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    if hasattr(program, "commands"):
        known |= {option for sub in program.commands.values() for parameter in sub.params for option in parameter.opts}
    for option in (word.partition("=")[0].rstrip(",.;:") for word in rest if word.startswith("--")):
        if option not in known:
            raise Unknown(f"{option}: no such option")
