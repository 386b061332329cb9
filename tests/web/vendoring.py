"""`make vendor`: what is not ours and cannot come from a Python package, as npm has it.

Each `vendor.json` names packages with a version, the integrity that npm publishes for it, and which
of its files are kept, with their hashes. This fetches each package, compares, and writes the files
anew; to take another version, write it and its integrity down and run it with `--accept`.
"""

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLACES = (ROOT / "aiomigrate" / "web" / "assets" / "vendor", ROOT / "tests" / "web" / "vendor")


def packed(name: str, version: str, integrity: str, directory: Path) -> Path:
    """The package as npm packs it. ValueError if it is another one than was written down."""
    command = ["npm", "pack", "--json", f"--pack-destination={directory}", f"{name}@{version}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    path = directory / str(json.loads(done.stdout)[0]["filename"])
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if integrity != f"sha512-{digest}":
        raise ValueError(f"{name}@{version} has integrity sha512-{digest}, not {integrity}")
    return path


def write(place: Path, package: dict[str, Any], archive: Path, *, accept: bool) -> None:
    """Its files, which have to be the recorded ones unless others are to be accepted."""
    with tarfile.open(archive) as files:
        for source, kept in package["files"].items():
            file = files.extractfile(f"package/{source}")
            content = b"" if file is None else file.read()
            found = hashlib.sha256(content).hexdigest()
            if accept:
                kept["sha256"] = found
            elif found != kept["sha256"]:
                raise ValueError(f"{source} has sha256 {found}, not {kept['sha256']}")
            (place / kept["name"]).write_bytes(content)


def main(*, accept: bool) -> None:
    """Fetch all."""
    for place in PLACES:
        record = place / "vendor.json"
        packages = json.loads(record.read_text())
        for name, package in packages.items():
            with tempfile.TemporaryDirectory() as directory:
                archive = packed(name, package["version"], package["integrity"], Path(directory))
                write(place, package, archive, accept=accept)
            print(f"{name} {package['version']}: {place.relative_to(ROOT)}")
        record.write_text(json.dumps(packages, indent=2) + "\n")


if __name__ == "__main__":
    main(accept="--accept" in sys.argv[1:])
