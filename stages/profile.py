"""Write params.yaml for a profile: configs/base.yaml with the overlay configs/profiles/<name>.yaml."""

from stages.command import Parser, run


def main(name: str, settings: list[str], data: str | None, force: bool) -> None:
    """Resolve the profile, check it, write it."""
    import sys

    from pipeline.experiment.layout import find_root
    from pipeline.experiment.profiles import apply, names, parse_settings, pointed_at

    overrides = parse_settings(settings)
    if data:
        overrides |= pointed_at(find_root(), name, data)
    changed = apply(find_root(), name, overrides, force=force)
    sys.stderr.write(
        f"params.yaml {'now holds' if changed else 'already held'} profile {name} "
        f"(of {', '.join(names(find_root()))})\n"
    )


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("name", help="a file of configs/profiles, without its extension")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="override a parameter"
    )
    parser.add_argument("--data", help="folder to use in place of data/real in the profile's datasets")
    parser.add_argument("--force", action="store_true", help="discard edits of one's own in params.yaml")
    given = parser.parse_args()
    run(lambda: main(given.name, given.settings, given.data, given.force))
