"""Publish a trained checkpoint on the Hugging Face Hub, as a repository that `from_pretrained` loads with its code.

    python tools/release.py runs/mine --repo_id USER/NAME --dry_run        # lists what would be sent, sends nothing
    hf auth login                                                          # once; or set HF_TOKEN
    python tools/release.py runs/mine --repo_id USER/NAME --evaluation runs/eval

The repository is private unless --public says otherwise. docs/publishing.md: what it contains, what stays behind.
"""

import argparse
import sys

from au_llava.au_publishing.hub import Release, gather, upload


def describe(release: Release) -> str:
    """The files with their sizes, what is left out and why, and what has to be settled."""
    sizes = release.sizes()
    lines = [f"{size:>15,}  {name}" for name, size in sizes.items()]
    lines.append(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files")
    lines += [f"Left out, {why}: {', '.join(names)}" for why, names in release.left_out.items()]
    return "\n".join([*lines, *(f"Note: {note}" for note in release.notes)])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", help="the checkpoint, as train_sft.py or save_pretrained wrote it")
    parser.add_argument("--repo_id", required=True, metavar="USER/NAME", help="the repository to make")
    parser.add_argument(
        "--evaluation", nargs="+", default=[], metavar="DIR", help="of this checkpoint, as eval_au.py wrote them"
    )
    parser.add_argument(
        "--benchmark", metavar="USER/NAME", help="the dataset on the Hub that was tested on: also write .eval_results"
    )
    parser.add_argument("--public", action="store_true", help="let everybody see the repository (default: private)")
    parser.add_argument("--update", action="store_true", help="add a commit to a repository that exists")
    parser.add_argument("--dry_run", action="store_true", help="list the files, send nothing")
    return parser


def main(arguments: argparse.Namespace) -> None:
    if arguments.repo_id.count("/") != 1:
        raise ValueError(f"--repo_id {arguments.repo_id}: give USER/NAME.")
    release = gather(arguments.folder, arguments.repo_id, arguments.evaluation, arguments.benchmark)
    print(describe(release))
    if arguments.dry_run:
        print("Nothing was sent.")
        return
    url = upload(
        arguments.repo_id,
        release.files,
        "AU-LLaVA checkpoint",
        private=not arguments.public,
        update=arguments.update,
    )
    print(f"Published: {url}")


if __name__ == "__main__":
    try:
        main(make_parser().parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"release.py: {error}")
