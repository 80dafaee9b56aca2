"""Gathers source code to train adapters on: published packages, by name and version, under permissive licences.

usage: corpus.py FOLDER HumanEval.jsonl.gz

Leaves FOLDER/PACKAGE-VERSION/... with source files alone, and FOLDER/COUNT.md, which says what came from where. Files in
which a line of HumanEval's problems stands are left out, and what is left is searched for their text. Needs pip, cargo and npm with their registries, and apt
with Debian 12's packages.
"""
import gzip, json, shutil, subprocess, sys, tarfile, tempfile, zipfile
from pathlib import Path

# MIT, BSD, Apache-2.0, ISC or PSF, each of them.
PYPI = """aiohttp==3.12.15 attrs==25.3.0 black==25.1.0 click==8.2.1 cryptography==45.0.6 dask==2025.7.0 django==5.2.5
fastapi==0.116.1 flask==3.1.1 httpx==0.28.1 jinja2==3.1.6 matplotlib==3.10.5 mypy==1.17.1 networkx==3.5 nltk==3.9.1
numpy==2.3.2 pandas==2.3.1 pip==25.2 pydantic==2.11.7 pygments==2.19.2 pytest==8.4.1 requests==2.32.4 rich==14.1.0
scikit-learn==1.7.1 scipy==1.16.1 sqlalchemy==2.0.42 statsmodels==0.14.5 sympy==1.14.0 tornado==6.5.1 transformers==4.55.0
twisted==25.5.0 werkzeug==3.1.3""".split()
CRATES = """anyhow=1.0.98 axum=0.8.4 bytes=1.10.1 chrono=0.4.41 clap=4.5.42 crossbeam-channel=0.5.15 gix=0.73.0 hyper=1.6.0
image=0.25.6 indexmap=2.10.0 itertools=0.14.0 nalgebra=0.34.0 petgraph=0.8.2 rayon=1.10.0 regex=1.11.1 reqwest=0.12.22
rusqlite=0.37.0 serde_json=1.0.142 tantivy=0.24.2 tokio=1.47.1 tracing=0.1.41 wasmtime=35.0.0 zstd=0.13.3""".split()
NPM = """@angular/core@20.1.4 date-fns@4.1.0 express@5.1.0 immer@10.1.1 lodash@4.17.21 prettier@3.6.2 react-router@7.7.1
rxjs@7.8.2 svelte@5.37.2 three@0.179.1 typeorm@0.3.25 vue@3.5.18 zod@4.0.14""".split()
# Of Debian 12: Go is published as sources alone.
DEBIAN = """golang-1.19-src=1.19.8-2 golang-github-alecthomas-chroma-dev=0.10.0-3 golang-github-charmbracelet-bubbletea-dev=0.19.1-3
golang-github-dgraph-io-badger-dev=2.2007.2-3 golang-github-gin-gonic-gin-dev=1.8.1-1 golang-github-go-chi-chi-dev=5.0.7-1
golang-github-go-git-go-git-dev=5.4.2-3 golang-github-gorilla-mux-dev=1.8.0-1 golang-github-labstack-echo-dev=4.2.1-3
golang-github-prometheus-client-golang-dev=1.14.0-3 golang-github-sirupsen-logrus-dev=1.9.0-1 golang-github-spf13-afero-dev=1.9.3-1
golang-github-spf13-cobra-dev=1.6.1-1 golang-github-spf13-viper-dev=1.10.1-1 golang-github-stretchr-testify-dev=1.8.1-1
golang-github-syndtr-goleveldb-dev=0.0~git20200815.5c35d60-1 golang-github-urfave-cli-v2-dev=2.3.0-2
golang-github-valyala-fasthttp-dev=1:1.31.0-4 golang-github-yuin-goldmark-dev=1.5.4-1 golang-go.uber-zap-dev=1.23.0-1
golang-go4-dev=0.0~git20201209.d4a0794-1 golang-golang-x-net-dev=1:0.7.0+dfsg-1 golang-golang-x-tools-dev=1:0.5.0+ds-1
golang-google-grpc-dev=1.33.3-2""".split()
EXTENSIONS = {".py", ".rs", ".ts", ".tsx", ".js", ".mjs", ".c", ".h", ".go"}
# What programs wrote is not what people write.
WRITTEN_BY_PROGRAMS = ("_string.go", ".pb.go", "_test.go", "_gen.go", "_generated.go", "zerrors", "zsyscall", "zsysnum", "ztypes", "tables.go")
# Tests and tables of data are much of some packages, and little like what people write.
LEFT_OUT = {"tests", "test", "testing", "locale", "node_modules", "dist", "bundles", "_vendor", "min"}


def is_wanted(name):
    path = Path(name)
    is_minified = ".min." in path.name or path.name.endswith(".d.ts")
    is_of_people = not path.name.startswith(WRITTEN_BY_PROGRAMS) and not path.name.endswith(WRITTEN_BY_PROGRAMS)
    return path.suffix in EXTENSIONS and not is_minified and is_of_people and not LEFT_OUT & set(path.parts[:-1])


def keep(folder, name, content, lines_of_others):
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return 0
    if not 200 <= len(text) <= 400_000 or any(line in text for line in lines_of_others):
        return 0
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return len(text)


def from_pypi(package, scratch):
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, package]
    subprocess.run(command, check=True)
    archive = next(Path(scratch).glob("*"))
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if is_wanted(name))
    else:
        yield from from_tar(archive)


def from_tar(archive):
    with tarfile.open(archive) as files:
        for member in files:
            if member.isfile() and is_wanted(member.name):
                yield member.name, files.extractfile(member).read()


def from_npm(package, scratch):
    subprocess.run(["npm", "pack", "--silent", package], check=True, cwd=scratch, stdout=subprocess.DEVNULL)
    yield from from_tar(next(Path(scratch).glob("*.tgz")))


def from_debian(package, scratch):
    subprocess.run(["apt-get", "download", "-q", "-q", package], check=True, cwd=scratch)
    archive = next(Path(scratch).glob("*.deb"))
    subprocess.run(["dpkg-deb", "--extract", archive, "root"], check=True, cwd=scratch)
    root = Path(scratch, "root")
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    names = ((str(path.relative_to(root)), path) for path in files)
    yield from ((name, path.read_bytes()) for name, path in names if is_wanted(name))


def from_crates(crates, scratch):
    """Yields (crate, files) of these and of what they need."""
    dependencies = "".join(f'{name} = "={version}"\n' for name, version in (crate.split("=") for crate in crates))
    manifest = f'[package]\nname = "corpus"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\n{dependencies}'
    root = Path(scratch)
    (root / "Cargo.toml").write_text(manifest)
    (root / "src").mkdir()
    (root / "src/lib.rs").write_text("")
    subprocess.run(["cargo", "vendor", "-q", "--versioned-dirs"], check=True, cwd=root, stdout=subprocess.DEVNULL)
    for crate in sorted((root / "vendor").iterdir()):
        files = (path for path in crate.rglob("*") if path.is_file())
        names = ((str(path.relative_to(crate)), path) for path in files)
        # Declarations of systems' interfaces are tables, not code.
        is_table = crate.name.startswith(("windows", "winapi", "libc-", "web-sys", "js-sys", "linux-raw-sys", "encoding"))
        if not is_table:
            yield crate.name, ((name, path.read_bytes()) for name, path in names if is_wanted(name))


def find_problems(folder, problems):
    """Files in which a problem's description or its solution of three lines and more stands, however indented."""
    squeeze = lambda text: "".join(text.split())
    texts = [problem["prompt"].split('"""')[1] for problem in problems if '"""' in problem["prompt"]]
    solutions = (problem["canonical_solution"] for problem in problems)
    texts += [solution for solution in solutions if solution.strip().count("\n") >= 2]
    wanted = [squeezed for squeezed in map(squeeze, texts) if len(squeezed) >= 60]
    files = (path for path in folder.rglob("*.py"))
    return [path for path in files if any(text in squeezed for squeezed in [squeeze(path.read_text())] for text in wanted)]


def main():
    folder = Path(sys.argv[1])
    problems = [json.loads(line) for line in gzip.open(sys.argv[2])]
    texts = (problem["prompt"] + problem["canonical_solution"] for problem in problems)
    longest = (max(text.splitlines(), key=len).strip() for text in texts)
    lines = [line for line in longest if len(line) >= 30]
    shutil.rmtree(folder, ignore_errors=True)
    counts = []

    def take(package, files):
        n_bytes = sum(keep(folder / package.replace("/", "-"), name, content, lines) for name, content in files)
        counts.append((package, n_bytes))
        print(f"{package}: {n_bytes / 1e6:.1f} MB", file=sys.stderr)

    for packages, source in [(PYPI, from_pypi), (NPM, from_npm), (DEBIAN, from_debian)]:
        for package in packages:
            with tempfile.TemporaryDirectory() as scratch:
                take(package, source(package, scratch))
    with tempfile.TemporaryDirectory() as scratch:
        for crate, files in from_crates(CRATES, scratch):
            take(crate, files)
    if found := find_problems(folder, problems):
        sys.exit(f"HumanEval's text stands in {', '.join(map(str, found))}")
    rows = "".join(f"| {package} | {n_bytes} |\n" for package, n_bytes in counts if n_bytes)
    (folder / "COUNT.md").write_text(f"| package | bytes |\n|---|---|\n{rows}")


main()
