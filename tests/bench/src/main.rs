//! Measures `snapslot` against `qemu-img snapshot` and against the disk itself, in one run, whole process
//! against whole process, on images like those people have. See the README beside this file.
//!
//! A target that is missed is shown as missed and is no failure: the figures of one machine on one day
//! judge nothing. The exit code is 1 only when something that was measured did not do its work.

mod args;
mod image;
mod measure;
mod process;
mod qcow2;
mod random;
mod report;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use args::{Args, Mode};
use image::{Extent, Recipe};
use measure::{Bench, Sample, Verb, progress};
use report::Report;

/// What went wrong, in words for a person.
#[derive(Clone, Debug)]
pub(crate) struct Failure(pub(crate) String);

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

fn main() -> ExitCode {
    let done = match args::parse(std::env::args_os().skip(1)) {
        Err(Failure(message)) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
        Ok(Mode::Help) => {
            println!("{}", args::HELP);
            Ok(true)
        }
        Ok(Mode::MetadataLimit(path)) => qcow2::rewrite_metadata(&path).map(|()| true),
        Ok(Mode::Bench(args)) => bench(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what `args` asks for and prints it; whether all of it worked.
fn bench(args: &Args) -> Result<bool, Failure> {
    let mut recipes = chosen(args)?;
    if args.ours_only {
        for recipe in &mut recipes {
            (recipe.default_rounds, recipe.tuned_rounds) = (0, 0);
        }
    }
    let snapslot = if args.peers_only { None } else { Some(find_snapslot(args)?) };
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new()
        .prefix("snapslot-bench-")
        .tempdir_in(&parent)
        .map_err(|error| Failure(format!("{}: {error}", parent.display())))?;
    let bench = Bench {
        snapslot,
        dir: dir.path().to_path_buf(),
        rounds: args.rounds,
        writes: if args.extent == Extent::Smoke { 50 } else { 1000 },
    };

    let mut report = Report::new(&bench)?;
    if process::is_in_memory(dir.path()) {
        report.warn(
            "the images are on a file system in memory, where a flush costs nothing; use --dir",
        );
    }
    if bench.snapslot.is_some() {
        startup(&bench, &mut report)?;
    }
    for recipe in &recipes {
        let result = bench.measure(recipe);
        if let Some(failure) = &result.failure {
            progress(recipe.name, &format!("FAILED: {failure}"));
        }
        report.add(result);
    }
    report.finish(args.extent == Extent::Smoke);
    if args.json {
        println!("{}", report.to_json());
    } else {
        print!("{}", report.to_text());
    }
    Ok(report.all_worked())
}

/// The images of the extent, or the named ones: those of the other extents may be named as well.
fn chosen(args: &Args) -> Result<Vec<Recipe>, Failure> {
    if args.only.is_empty() {
        return Ok(image::recipes(args.extent));
    }
    let all: Vec<Recipe> =
        [args.extent, Extent::Full, Extent::Smoke].into_iter().flat_map(image::recipes).collect();
    let find = |name: &String| {
        all.iter().find(|recipe| recipe.name == name).cloned().ok_or_else(|| {
            let mut names: Vec<_> = all.iter().map(|recipe| recipe.name).collect();
            names.sort_unstable();
            names.dedup();
            Failure(format!("no image is called {name}; there are {}", names.join(", ")))
        })
    };
    args.only.iter().map(find).collect()
}

/// What a process costs before it does anything, and the very first one, which prepares the plugin.
fn startup(bench: &Bench, report: &mut Report) -> Result<(), Failure> {
    progress("start-up", "snapslot --version, and the first take with an empty cache");
    for _ in 0..20 {
        let mut command = bench.snapslot_command()?;
        let run = process::run(command.arg("--version"))?.succeeded("snapslot --version")?;
        report.startup.push(Sample::from(&run));
    }
    let path = bench.dir.join("start-up.qcow2");
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("64M");
    process::run(&mut create)?.succeeded("qemu-img create")?;
    report.first_take = Some(bench.snapslot_verb(Verb::Take, &path)?);
    bench.snapslot_verb(Verb::Delete, &path)?;
    for _ in 0..5 {
        report.tiny_take.push(bench.snapslot_verb(Verb::Take, &path)?);
        bench.snapslot_verb(Verb::Delete, &path)?;
    }
    progress("confinement", "take and delete, plugins confined and not, in turn");
    for _ in 0..20 {
        for (confine, samples) in
            [("auto", &mut report.confined), ("never", &mut report.not_confined)]
        {
            for verb in [Verb::Take, Verb::Delete] {
                samples.push(bench.snapslot_verb_confined(verb, &path, confine)?);
            }
        }
    }
    Ok(())
}

fn find_snapslot(args: &Args) -> Result<PathBuf, Failure> {
    if let Some(path) = &args.snapslot {
        return existing(path).ok_or_else(|| Failure(format!("{}: no such file", path.display())));
    }
    let own = std::env::current_exe().map_err(|error| Failure(format!("own path: {error}")))?;
    own.parent().and_then(|dir| existing(&dir.join("snapslot"))).ok_or_else(|| {
        Failure(
            "there is no snapslot beside this binary: build it with `cargo build --release`, \
             or say where it is with --snapslot PATH"
                .into(),
        )
    })
}

/// The absolute path of a file that is there.
fn existing(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).ok().filter(|path| path.is_file())
}
