"""The command line: parse, call the library, say how it went. No science in here.

Results go to ``--out`` and standard output, everything else to standard error. Exit codes: 0 done, 1 an error
that the user can mend (one line), 2 wrong usage, 3 done but some tiles failed, 130 interrupted.
"""

import contextlib
import functools
import logging
import sys
import time

import click

from surveycat import __version__
from surveycat.errors import SurveycatError, one_line

SOME_FAILED = 3
INTERRUPTED = 130

log = logging.getLogger("surveycat")


def _reporting(command):
    """Give a command ``--debug``, ``-v``, ``-q``, and turn what goes wrong into a line and an exit code."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
    @functools.wraps(command)
    def reporting(debug, verbose, quiet, **options):
        unfinished = _unfinished(options.get("out"))
        try:
            with _log_to_stderr(verbose, quiet):
                code = command(quiet=quiet, **options)
        except (SurveycatError, OSError) as error:
            if debug:
                raise
            said = one_line(error)
            if not unfinished and "--resume" not in said and _unfinished(options.get("out")):
                said += f"; {_way_on(options['out'])}"
            click.echo(f"surveycat: {said}", err=True)
            code = 1
        except KeyboardInterrupt:
            click.echo(f"surveycat: interrupted, {_way_on(options.get('out'))}", err=True)
            code = INTERRUPTED
        sys.exit(code)

    return reporting


def _unfinished(out):
    """Whether a command that writes `out` has left what it can go on with."""
    if out is None:
        return False
    from surveycat.unfinished import partial_folder

    return partial_folder(out).is_dir()


def _way_on(out):
    """Say what a command that ended early has left behind and how to go on."""
    from surveycat.unfinished import partial_folder

    if not _unfinished(out):
        return "nothing was written"
    return f"what is finished is kept in {partial_folder(out)}; add --resume to the same command to go on"


@contextlib.contextmanager
def _log_to_stderr(verbose, quiet):
    """Send our log lines to standard error for a while, and other packages' warnings only with ``-v``."""
    handler = logging.StreamHandler()
    others = logging.getLogger("py.warnings")
    levels = log.level, others.level
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    others.setLevel(logging.WARNING if verbose else logging.CRITICAL)
    logging.captureWarnings(True)
    for logger in (log, others):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level in zip((log, others), levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        logging.captureWarnings(False)


class _Angle(click.ParamType):
    """A coordinate: degrees, or sexagesimal as catalogues print it (a right ascension then in hours)."""

    name = "angle"

    def __init__(self, in_hours=False):
        self.in_hours = in_hours

    def convert(self, value, param, context):
        """Turn what was typed into degrees."""
        from surveycat.positions import angle

        try:
            return angle(str(value), self.in_hours)
        except ValueError as error:
            example = "351.65 or 23:26:36" if self.in_hours else "-0.10 or -00:06:00"
            self.fail(f"{value!r}, {error}; give {example}", param, context)


def _network_options(command):
    """Give a command the options that say which network searches, and how sure it must be."""
    options = (
        click.option(
            "--weights",
            default="compact",
            show_default=True,
            help="The network that searches: a preset (see `surveycat weights list`), a folder or an .h5 file.",
        ),
        click.option("--preset", help="Which network an .h5 file of mrcnn is for; see `surveycat weights list`."),
        click.option(
            "--min-score",
            type=float,
            default=0.5,
            show_default=True,
            help="Least probability of being a galaxy that a row needs, 0 to 1.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _skyserver_options(command):
    """Give a command the options that say which SkyServer to ask, and how."""
    options = (
        click.option("--skyserver", help="Address of SkyServer; or set SURVEYCAT_SKYSERVER."),
        click.option("--release", help="SDSS data release; or set SURVEYCAT_SDSS_RELEASE."),
        click.option("--cache", help="Folder for downloads; or set SURVEYCAT_CACHE."),
        click.option("--no-cache", is_flag=True, help="Keep no downloads."),
        click.option("--rate", type=float, default=10.0, show_default=True, help="Requests in a second, at most."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _skyserver(skyserver, release, cache, no_cache, rate):
    """Make the client that the options ask for; it is closed at the end, so that nothing outlives an interruption."""
    from surveycat.cache import default_cache
    from surveycat.skyserver import SkyServer

    cache = None if no_cache else cache or default_cache()
    return contextlib.closing(SkyServer(skyserver, release, cache=cache, rate=rate))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="surveycat")
def main():
    """Make galaxy catalogues from survey images of any size.

    \b
    Example:
      surveycat run field.jpg --ra 351.65 --dec 0.10 --out cat.parquet
    """


@main.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, help="The catalogue; its suffix is its format (.parquet is best).")
@click.option(
    "--bands",
    default="auto",
    show_default=True,
    help="Whether several FITS files are the bands of one image: auto (they are, if their FILTER differs and they show "
    "the same sky), none (each is an image), or the bands' names in the order of the files, such as i,r,g.",
)
@click.option(
    "--ra",
    type=_Angle(in_hours=True),
    help="Right ascension of the image's centre, ICRS degrees or h:m:s: goes before its own WCS.",
)
@click.option("--dec", type=_Angle(), help="Declination of the centre, ICRS degrees or d:m:s.")
@click.option("--pixel-scale", type=float, help="Arcseconds per pixel, with --ra and --dec.")
@click.option(
    "--rotation", type=float, default=0.0, help="Angle from up to north, counter-clockwise, degrees; 0: north up."
)
@click.option("--wcs", help="A FITS or text header file with the image's WCS.")
@click.option(
    "--mask", metavar="FILE", help="FITS image on the same pixels, 0 where they are good; others are left out."
)
@click.option(
    "--weight",
    metavar="FILE",
    multiple=True,
    help="FITS image of inverse variances (1/sigma^2, in units of the image) on the same pixels, from which errors "
    "come; pixels without weight are left out. With bands: once for each file, in their order.",
)
@click.option("--region", help="Only this part: x0,y0,x1,y1 in pixels, or ra0d,dec0d,ra1d,dec1d on the sky.")
@_network_options
@click.option(
    "--resample",
    default="auto",
    show_default=True,
    help="Search an image at 1/FACTOR of its resolution (2, 4 or 8); auto does so where its PSF is wider than 5 px; "
    "none never does. Positions and sizes are those of the image as it is.",
)
@click.option("--workers", type=int, default=0, show_default=True, help="Processes that share the work; 0: this one.")
@click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler, tcp://host:port, whose workers do the work.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist; start afresh.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, if there is one.")
@click.option("--preview", help="A picture of what was found (.png or .jpg).")
@click.option("--regions", help="The outlines as DS9 regions (.reg), on the sky if the image has a position.")
@click.option("--segmap", help="A segmentation map (.fits): each pixel holds the id of its object.")
@click.option(
    "--moc",
    help="The area of the sky that was searched, as a MOC (.fits or .json): to look at in Aladin, and to cut other "
    "catalogues to it. Its cells are coarse, about 1/256 of the image.",
)
@click.option(
    "--coverage",
    help="What became of each pixel (.fits), as a sum of 1 searched, 2 failed, 4 blank, 8 too crowded: to see where "
    "this run may have missed something.",
)
@_reporting
def run(images, out, quiet, **options):
    """Find the galaxies in IMAGES (JPEG, PNG, TIFF or FITS) and write one catalogue of them.

    \b
    Example:
      surveycat run examples/field.jpg --ra 351.65 --dec 0.10 --out cat.parquet --preview preview.png
    """
    from surveycat.pipeline import run as search

    started = time.monotonic()
    with _progress(quiet) as progress:
        table = search(images, out, progress=progress, **options)
    failed = table.meta["tiles_failed"]
    if failed:
        log.error("%d tiles could not be searched; the table's meta lists them and why", len(failed))
    if not quiet:
        click.echo(_summary(table, out, time.monotonic() - started))
    return SOME_FAILED if failed else 0


@main.command()
@click.argument("catalogue", metavar="CATALOG")
@click.argument("reference")
@click.option("--out", required=True, help="The result; its suffix is its format (.parquet is best).")
@click.option("--radius", type=float, default=2.0, show_default=True, help="Largest separation, arcsec.")
@click.option("--all", "all_pairs", is_flag=True, help="Every pair, instead of one partner for each row.")
@click.option(
    "--footprint", is_flag=True, help="What lies in an object's outline is a candidate beyond the radius too."
)
@click.option("--on", help="Compare identifiers in this column of both tables, e.g. dr7objid, not positions.")
@click.option("--join", default="left", show_default=True, help="left keeps rows without a partner, inner does not.")
@click.option("--prefixes", help="Before the columns of either table, e.g. cat_,ref_ or ,ref_ for bare names.")
@click.option("--ra-column", help="Right ascension in REFERENCE, where it is not found by itself.")
@click.option("--dec-column", help="Declination in REFERENCE.")
@click.option("--frame", help="Frame of REFERENCE: icrs, fk5, fk4, galactic, ecliptic; fk4:B1950 with an equinox.")
@click.option("--epoch", type=float, help="Year of the image: proper motions of REFERENCE are applied up to it.")
@click.option("--reference-epoch", type=float, help="Year of REFERENCE's positions, where it does not say so itself.")
@click.option("--unmatched", help="A table of the rows of REFERENCE without a partner.")
@click.option("--report", help="A folder for a report: completeness, purity, positions, classes; with plots.")
@click.option("--mag-column", help="Magnitude in REFERENCE for the report, where it is not found by itself.")
@click.option("--size-column", help="Size in REFERENCE for the report.")
@_skyserver_options
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@_reporting
def match(catalogue, reference, out, quiet, prefixes, skyserver, release, cache, no_cache, rate, **options):
    """Find the objects of CATALOG in REFERENCE and write both side by side.

    REFERENCE is any table file with positions; or sdss, the survey's photometry and spectra, fetched from SkyServer;
    or gz1 or gz2, the published Galaxy Zoo tables (gz2:FILE where you have it).

    \b
    Example:
      surveycat match cat.parquet stars.csv --radius 2 --out matched.parquet
    """
    from surveycat.match import match as identify

    options["prefixes"] = _two_words("--prefixes", prefixes)
    with contextlib.ExitStack() as stack:
        if reference == "sdss":
            options["service"] = stack.enter_context(_skyserver(skyserver, release, cache, no_cache, rate))
        result = identify(catalogue, reference, out, cache=cache, **options)
    if not quiet:
        found = result.meta["match"]
        click.echo(
            f"{found['n_matched']} of {found['n_catalog']} objects have a partner among the {found['n_reference']} "
            f"of {reference}, in {out}"
        )
    return 0


def _two_words(option, text):
    """Split ``a,b``; None stays."""
    words = None if text is None else tuple(word.strip() for word in text.split(","))
    if words is not None and len(words) != 2:
        raise click.UsageError(f"{option} {text!r} is not two words with a comma between them")
    return words


@main.command()
@click.option(
    "--ra", type=_Angle(in_hours=True), required=True, help="Right ascension of the centre, ICRS degrees or h:m:s."
)
@click.option("--dec", type=_Angle(), required=True, help="Declination of the centre, ICRS degrees or d:m:s.")
@click.option("--size", required=True, help="Side of the field in arcmin, or WIDTHxHEIGHT.")
@click.option("--out", required=True, help="The picture: .jpg, .png or .fits.")
@click.option("--pixel-scale", type=float, default=0.396127, show_default=True, help="Arcseconds per pixel.")
@_skyserver_options
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@_reporting
def fetch(ra, dec, size, out, quiet, pixel_scale, overwrite, **service):
    """Fetch a field of any size from SDSS, as a picture that knows where it is on the sky.

    \b
    Example:
      surveycat fetch --ra 351.65 --dec 0.10 --size 12 --out field.jpg && surveycat run field.jpg --out cat.parquet
    """
    from surveycat.mosaic import fetch as get

    with _progress(quiet) as progress, _skyserver(**service) as client:
        got = get(
            ra,
            dec,
            _sides(size),
            out,
            pixel_scale=pixel_scale,
            service=client,
            overwrite=overwrite,
            progress=progress,
        )
    if not quiet:
        click.echo(f"{got['shape'][1]} x {got['shape'][0]} pixels from {got['cutouts']} cutouts in {out}")
    return 0


@main.command()
@click.argument("images", metavar="IMAGE", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder for the objects, the rates and their plot.")
@click.option("--galaxies", type=int, default=200, show_default=True, help="Artificial galaxies to add.")
@click.option("--stars", type=int, default=200, show_default=True, help="Artificial stars to add.")
@click.option("--magnitudes", help="Brightest and faintest, e.g. 17,21; by default from the image's depth.")
@click.option("--sizes", help="Smallest and largest half-light radius of galaxies, pixels, e.g. 1,8.")
@click.option("--cutouts", help="Folder with pictures of real galaxies, to be added instead of Sersic profiles.")
@click.option("--fwhm", type=float, help="Seeing in pixels, where it cannot be measured.")
@click.option("--zero-point", type=float, help="Magnitude of one unit of the image.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed adds the same objects.")
@click.option("--bands", default="auto", show_default=True, help="As in run: names of FITS files that are bands.")
@click.option("--region", help="Only this part of the image, as in run.")
@_network_options
@click.option("--resample", default="auto", show_default=True, help="As in run: search at 1/FACTOR of the resolution.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier result.")
@_reporting
def inject(images, out, quiet, magnitudes, sizes, **options):
    """Add artificial galaxies and stars to IMAGE, search it, and say what part of them is found.

    IMAGE is one file, or the FITS files of its bands.

    \b
    Example:
      surveycat inject examples/field.jpg --out injected --galaxies 100 --stars 100
    """
    from surveycat.inject import inject as add_and_search

    with _progress(quiet) as progress:
        result = add_and_search(
            images,
            out,
            magnitudes=_two_numbers("--magnitudes", magnitudes),
            sizes=_two_numbers("--sizes", sizes),
            progress=progress,
            **options,
        )
    if not quiet:
        click.echo(f"{result.summary()}; by magnitude and size in {out}")
    return 0


def _two_numbers(option, text):
    """Split ``1.5,2``; None stays."""
    words = _two_words(option, text)
    try:
        return None if words is None else tuple(float(word) for word in words)
    except ValueError:
        raise click.UsageError(f"{option} {text!r} is not two numbers with a comma between them") from None


@main.command()
@click.argument("targets")
@click.option(
    "--images", help="Folder, template such as DIR/{id}.jpg, .zip, or skyserver; of a list of images: their folder."
)
@click.option("--out", required=True, help="Folder of the dataset.")
@click.option("--size", type=int, default=256, show_default=True, help="Side of cutouts from SkyServer, pixels.")
@click.option("--pixel-scale", type=float, default=0.396127, show_default=True, help="Arcsec per pixel of the search.")
@click.option("--image-scale", help="Arcsec per pixel of files, a column that has it, or gz2; else that of the search.")
@click.option("--mapping", help="For a zip: CSV with the columns objid and asset_id.")
@click.option("--id-column", help="Column with the identifiers; found by name otherwise.")
@click.option("--ra-column", help="Column with right ascensions; found by name otherwise.")
@click.option("--dec-column", help="Column with declinations.")
@click.option("--keep", multiple=True, help="Column of the list that rows on targets get; may be repeated.")
@_network_options
@click.option("--workers", type=int, default=0, show_default=True, help="Processes that share the work; 0: this one.")
@click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler, tcp://host:port, whose workers do the work.")
@click.option("--healpix-order", type=int, default=4, show_default=True, help="Order of the dataset's cells.")
@_skyserver_options
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, or add what is new in the list.")
@click.option("--retry-failed", is_flag=True, help="With --resume: try again what failed.")
@click.option("--overwrite", is_flag=True, help="Start afresh.")
@_reporting
def bulk(targets, images, out, quiet, healpix_order, skyserver, release, cache, no_cache, rate, **options):
    """Search the cutouts of all TARGETS, a list of any format, and write one dataset of what is in them.

    \b
    Example:
      surveycat bulk gz2_hart16.csv.gz --images skyserver --out gz2 --keep gz2class
    """
    from surveycat.bulk import bulk as search
    from surveycat.cache import default_cache
    from surveycat.dataset import failures_by_stage

    service = {"base_url": skyserver, "release": release, "rate": rate}
    service["cache"] = None if no_cache else str(cache or default_cache())
    with _bulk_progress(quiet) as progress:
        manifest = search(targets, images, out, order=healpix_order, service=service, progress=progress, **options)
    counts = manifest["counts"]
    if not quiet:
        found = f"{counts['detected']} with a galaxy on them, {counts['undetected']} without, {counts['failed']} failed"
        click.echo(f"{counts['targets']} targets: {found}; {counts['detections']} galaxies in {out}")
    if counts["failed"]:
        log.error("%d targets failed; %s/failures.parquet lists them", counts["failed"], out)
        for line in failures_by_stage(out):
            log.error("    %s", line)
    return SOME_FAILED if counts["failed"] else 0


@contextlib.contextmanager
def _bulk_progress(quiet, every=20.0):
    """Yield a callable (done, failed, total): a bar on a terminal, log lines elsewhere."""
    line, last = _BulkLine(), time.monotonic()
    with contextlib.ExitStack() as stack:
        status = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            bar = Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
            status = stack.enter_context(bar), bar.add_task("")

        def show(done, failed, total):
            nonlocal last
            said = line.say(done, failed, total)
            if status:
                status[0].update(status[1], completed=done, total=total, description=said)
            elif time.monotonic() - last > every or done == total:
                last = time.monotonic()
                log.info("%s", said)

        yield show


class _BulkLine:
    """Says how far a bulk run is, with the rate since its first target: loading the network is not part of it."""

    def __init__(self):
        self._first = self._since = None

    def say(self, done, failed, total):
        """Give the line."""
        if self._first is None:
            self._first, self._since = done, time.monotonic()
        seconds = time.monotonic() - self._since
        words = [f"{done} of {total} targets", f"{failed} failed"]
        if done > self._first and seconds > 1:  # batches come at once
            rate = (done - self._first) / seconds
            words.insert(1, f"{rate:.1f} per second")
            words += [f"{_hours((total - done) / rate)} left"] * (done < total)
        return ", ".join(words)


def _hours(seconds):
    """Write a time as h:mm:ss, also one of several days."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _sides(text):
    """Read "12" or "20x10" as width and height."""
    from surveycat.errors import OptionError

    parts = text.lower().split("x")
    try:
        width, height = (float(part) for part in (parts if len(parts) == 2 else parts * 2))
    except ValueError as error:
        raise OptionError(f"--size is {text!r}; give arcmin, as 12 or 20x10") from error
    return width, height


def _summary(table, out, seconds):
    """Say what was found, in one line."""
    spirals = int((table["class"] == "spiral").sum())
    ellipticals = len(table) - spirals
    galaxies = "1 galaxy" if len(table) == 1 else f"{len(table)} galaxies"
    return f"{galaxies} ({spirals} spiral, {ellipticals} elliptical) in {out}, {seconds:.1f} s"


@main.group()
def weights():
    """List, check and convert weights.

    \b
    Example:
      surveycat weights check
    """


@weights.command("list")
@_reporting
def list_weights(quiet):
    """Say what --weights and --preset can name.

    \b
    Example:
      surveycat weights list
    """
    from surveycat.mrcnn.convert import list_presets

    for name, about in list_presets():
        click.echo(f"{name}: {about}")


@weights.command()
@click.argument("names", nargs=-1)
@_reporting
def check(names, quiet):
    """Prove checksums, arrays and golden tile of NAMES (presets or folders), or of all that are installed.

    \b
    Example:
      surveycat weights check compact
    """
    from surveycat.mrcnn.convert import check_preset, installed_presets

    for name in names or installed_presets():
        line = check_preset(name)
        if not quiet:
            click.echo(line)


@weights.command()
@click.argument("file")
@click.option("--preset", help="Which network the file is for; see `surveycat weights list`.")
@click.option("--out", required=True, help="The folder to make.")
@click.option("--partial", is_flag=True, help="Without the heads, if the file has other classes: to train on.")
@click.option("--image", help="A picture with galaxies in its middle, for the golden tile.")
@_reporting
def convert(file, out, quiet, **options):
    """Make a preset folder, golden tile included, of FILE, an .h5 file of the mrcnn package.

    \b
    Example:
      surveycat weights convert mask_rcnn.h5 --preset mask-galaxy-2class --out mine
    """
    from surveycat.mrcnn.convert import convert as make_preset

    folder = make_preset(file, out, **options)
    if not quiet:
        click.echo(f"{folder}: made and proven; use it with --weights {folder}")


@contextlib.contextmanager
def _progress(quiet):
    """Yield a callable (stage, done, total): a bar on a terminal, log lines elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield _log_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def show(stage, done, total):
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def _log_progress(every=20.0):
    """Return a callable that logs how far a stage is, at most once in `every` seconds."""
    last = time.monotonic()

    def show(stage, done, total):
        nonlocal last
        if time.monotonic() - last > every:
            last = time.monotonic()
            log.info("%s: %d of %d", stage, done, total)

    return show
