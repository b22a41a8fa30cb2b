"""Put the trained models of a profile into assets/."""

from stages.command import arguments, run


def main(profile: str) -> None:
    """Export what lies in runs/<profile>."""
    from pipeline.experiment.export_assets import export_assets
    from pipeline.experiment.layout import Layout, find_root
    from pipeline.experiment.params import check_params
    from pipeline.experiment.profiles import resolved

    root = find_root()
    export_assets(check_params(resolved(root, profile)), Layout(root, profile))


if __name__ == "__main__":
    given = arguments(__doc__, "profile")
    run(lambda: main(given["profile"]))
