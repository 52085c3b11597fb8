//! The command line.

use std::{ffi::OsString, path::PathBuf};

use crate::{Failure, image::Extent};

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Measures snapslot against qemu-img snapshot and against the disk itself.

Usage: snapslot-test-bench [--quick | --full | --smoke] [OPTIONS]

  --quick           1 GiB of data, 20 GiB shuffled and its twin, 100 GiB: a minute or two (the default)
  --full            all images, up to 1 TiB: about 20 minutes and 40 GB of disk
  --smoke           tiny images: that the bench works, not how fast anything is
  --only NAME       only this image; may be given again
  --rounds N        rounds [default: 5; smoke 1]; slow peers make do with fewer
  --snapslot PATH   the binary to measure [default: the one beside this]
  --peers-only      measure qemu-img and the limit alone
  --ours-only       measure snapslot and the limit alone: quick, for work on snapslot itself
  --dir DIR         where images are made and removed [default: the temporary directory]
  --json            one JSON object on standard output instead of tables

  --metadata-limit IMAGE
                    read the L2 tables and refcount blocks of IMAGE and write them back, once
                    (what the limit is measured with)";

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Mode {
    /// Print the help.
    Help,
    /// Rewrite the metadata of one image.
    MetadataLimit(PathBuf),
    /// Measure.
    Bench(Args),
}

/// What is to be measured, and how.
#[derive(Debug)]
pub(crate) struct Args {
    /// Which images.
    pub(crate) extent: Extent,
    /// Only images of these names, or all.
    pub(crate) only: Vec<String>,
    /// How many rounds.
    pub(crate) rounds: u32,
    /// The binary, if not the one beside this.
    pub(crate) snapslot: Option<PathBuf>,
    /// Whether snapslot stays out.
    pub(crate) peers_only: bool,
    /// Whether qemu-img stays out.
    pub(crate) ours_only: bool,
    /// Where to work, if not in the temporary directory.
    pub(crate) dir: Option<PathBuf>,
    /// JSON instead of tables.
    pub(crate) json: bool,
}

/// Reads the command line.
pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Mode, Failure> {
    let mut words = words;
    let mut args = Args {
        extent: Extent::Quick,
        only: Vec::new(),
        rounds: 0,
        snapslot: None,
        peers_only: false,
        ours_only: false,
        dir: None,
        json: false,
    };
    while let Some(word) = words.next() {
        let option = word.to_string_lossy().into_owned();
        let mut value =
            || words.next().ok_or_else(|| Failure(format!("{option} needs a value; see --help")));
        match option.as_str() {
            "--help" | "-h" => return Ok(Mode::Help),
            "--metadata-limit" => return Ok(Mode::MetadataLimit(value()?.into())),
            "--quick" => args.extent = Extent::Quick,
            "--full" => args.extent = Extent::Full,
            "--smoke" => args.extent = Extent::Smoke,
            "--only" => args.only.push(value()?.to_string_lossy().into_owned()),
            "--rounds" => {
                let number = value()?;
                args.rounds = number
                    .to_str()
                    .and_then(|digits| digits.parse().ok())
                    .filter(|rounds| (1..=1000).contains(rounds))
                    .ok_or_else(|| Failure("--rounds takes a number from 1 to 1000".into()))?;
            }
            "--snapslot" => args.snapslot = Some(value()?.into()),
            "--peers-only" => args.peers_only = true,
            "--ours-only" => args.ours_only = true,
            "--dir" => args.dir = Some(value()?.into()),
            "--json" => args.json = true,
            _ => return Err(Failure(format!("{option}: no such option; see --help"))),
        }
    }
    if args.peers_only && args.ours_only {
        return Err(Failure("--peers-only and --ours-only leave nobody".into()));
    }
    if args.rounds == 0 {
        args.rounds = if args.extent == Extent::Smoke { 1 } else { 5 };
    }
    Ok(Mode::Bench(args))
}
