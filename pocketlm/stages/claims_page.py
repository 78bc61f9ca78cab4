"""The page of claims: what a recipe of claims ends with."""

from dataclasses import dataclass
from pathlib import Path

from pocketlm.model.files import read_json, write_json, write_text
from pocketlm.report.claims_curves import curves_picture, unclear_parts
from pocketlm.report.claims_page import arms_picture, claims_markdown, condition_figure, curves_file


@dataclass(frozen=True, kw_only=True)
class ClaimsPageConfig:
    name: str

    def summary(self) -> str:
        return "one page of all verdicts"


def claims_page(config: ClaimsPageConfig, out: Path, *, claims: list[Path]) -> Path:
    """`out`, with claims.md, a picture for each claim, one more where a condition is unclear, and
    claims.json with the figures of each arm and seed, from the claim.json of judge stages.
    """
    judged = {folder.name: read_json(folder / "claim.json") for folder in claims}
    pictures = []
    for name, claim in judged.items():
        measure = next(iter(next(iter(claim["arms"].values()))["figures"]))
        pictures.append(f"{name}.svg")
        write_text(out / pictures[-1], arms_picture(claim, measure))
        if unclear_parts(claim):
            curves = curves_picture(claim, condition_figure)
            write_text(out / curves_file(pictures[-1]), curves)
    write_json(out / "claims.json", judged)
    write_text(out / "claims.md", claims_markdown(judged, pictures))
    return out
