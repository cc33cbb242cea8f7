# One word for each habit of a contributor; `just` lists them.

bin := justfile_directory() / ".venv/bin"

[private]
default:
    @just --justfile {{justfile()}} --list

# make the environment in .venv
setup:
    python3 -m venv .venv
    {{bin}}/pip install --quiet --disable-pip-version-check -e ".[dev]"

# format, and mend what ruff can mend
format:
    {{bin}}/ruff check --fix .
    {{bin}}/ruff format .

# lint, types, import contracts, the rules of the house
check:
    {{bin}}/ruff check .
    {{bin}}/ruff format --check .
    {{bin}}/mypy
    {{bin}}/lint-imports
    {{bin}}/python -m tests.house

# all tests, or those that the arguments name
test *arguments:
    {{bin}}/pytest -n 2 {{arguments}}

# the unit tests
quick:
    {{bin}}/pytest -q -n 2 tests/unit

# the tests of one room, such as `store`, `console`, `protocol` or `dispatcher`
room name:
    {{bin}}/pytest -q $(ls -d tests/unit/{{name}} tests/{{name}} tests/integration/test_{{name}}.py 2>/dev/null)

# which lines the tests run, of the suite or of what the arguments name; it takes longer than the tests alone
coverage *arguments:
    -{{bin}}/coverage run -m pytest -q {{arguments}}
    {{bin}}/coverage combine --quiet
    {{bin}}/coverage report --skip-covered --show-missing

# what a change must pass, from nothing
ci:
    .ci/run

# the longer proofs
release:
    {{bin}}/pytest -m release

# plant each known defect, or those whose names contain a word: a test must catch it
planted *words:
    {{bin}}/python -m tests.planted {{words}}

# what a task costs
bench *arguments:
    {{bin}}/python -m benchmarks {{arguments}}

# make the page of error codes and the screenshots of the console anew
docs:
    {{bin}}/python -m tests.support.error_page
    {{bin}}/python -m tests.console.screenshots

# build the book from docs/ into build/book
book:
    NO_MKDOCS_2_WARNING=1 {{bin}}/mkdocs build --strict --config-file .mkdocs/mkdocs.yml
