//! What an image is made of.

use snapslot_test_support::{Image, Scratch, SplitMix64};

/// What lies behind an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// A raw file shorter than the disk.
    Smaller,
    /// A raw file longer than the disk.
    Larger,
    /// Another qcow2 image.
    Qcow2,
}

/// One set of features.
#[derive(Clone, Debug)]
pub(super) struct Feature {
    pub(super) cluster: u64,
    pub(super) refcount_bits: u32,
    pub(super) version_2: bool,
    pub(super) extended_l2: bool,
    pub(super) compression: Option<&'static str>,
    pub(super) backing: Option<Backing>,
    pub(super) luks: bool,
    pub(super) bitmap: bool,
    pub(super) foreign: bool,
    pub(super) more: Vec<&'static str>,
}

impl Feature {
    /// QEMU's defaults.
    pub(super) fn new() -> Self {
        Feature {
            cluster: 64 << 10,
            refcount_bits: 16,
            version_2: false,
            extended_l2: false,
            compression: None,
            backing: None,
            luks: false,
            bitmap: false,
            foreign: false,
            more: Vec::new(),
        }
    }

    pub(super) fn cluster(self, cluster: u64) -> Self {
        Feature { cluster, ..self }
    }

    pub(super) fn refcount_bits(self, refcount_bits: u32) -> Self {
        Feature { refcount_bits, ..self }
    }

    pub(super) fn version_2(self) -> Self {
        Feature { version_2: true, ..self }
    }

    pub(super) fn extended_l2(self) -> Self {
        Feature { extended_l2: true, ..self }
    }

    /// The guest also writes compressed clusters.
    pub(super) fn compressed(self, method: &'static str) -> Self {
        Feature { compression: Some(method), ..self }
    }

    pub(super) fn backing(self, backing: Backing) -> Self {
        Feature { backing: Some(backing), ..self }
    }

    pub(super) fn luks(self) -> Self {
        Feature { luks: true, ..self }
    }

    /// With a persistent bitmap that records what the guest writes.
    pub(super) fn bitmap(self) -> Self {
        Feature { bitmap: true, ..self }
    }

    /// With snapshots that somebody else makes and deletes.
    pub(super) fn foreign(self) -> Self {
        Feature { foreign: true, ..self }
    }

    pub(super) fn option(mut self, option: &'static str) -> Self {
        self.more.push(option);
        self
    }

    /// Any set of features that QEMU accepts together.
    pub(super) fn random(random: &mut SplitMix64) -> Self {
        let mut feature = Feature::new().cluster(512 << random.below(13));
        if random.chance(1, 5) {
            feature = feature.version_2();
        } else {
            feature = feature.refcount_bits(4 << random.below(5));
            feature.extended_l2 = feature.cluster >= 16 << 10 && random.chance(1, 3);
            feature.bitmap = random.chance(1, 6);
            feature.luks = random.chance(1, 8);
            if random.chance(1, 3) {
                feature = feature.option("lazy_refcounts=on");
            }
        }
        if !feature.luks && random.chance(1, 2) {
            let zstd = !feature.version_2 && feature.cluster >= 4096 && random.chance(1, 2);
            feature = feature.compressed(if zstd { "zstd" } else { "zlib" });
        }
        feature.foreign = random.chance(1, 2);
        if !feature.luks && random.chance(1, 2) {
            let kinds = [Backing::Smaller, Backing::Larger, Backing::Qcow2];
            feature = feature.backing(kinds[random.below(3) as usize]);
        }
        feature
    }

    /// As `qemu-img create -o` wants it.
    pub(super) fn options(&self) -> Vec<String> {
        let mut options = vec![format!("cluster_size={}", self.cluster)];
        if self.version_2 {
            options.push("compat=0.10".to_owned());
        } else {
            options.push(format!("compat=1.1,refcount_bits={}", self.refcount_bits));
        }
        if self.extended_l2 {
            options.push("extended_l2=on".to_owned());
        }
        if self.compression == Some("zstd") {
            options.push("compression_type=zstd".to_owned());
        }
        options.extend(self.more.iter().map(|option| (*option).to_owned()));
        options
    }

    /// In a few words.
    pub(super) fn words(&self) -> String {
        let mut words = self.options().join(",");
        for (set, word) in [
            (self.compression.is_some(), " compressed writes"),
            (self.luks, " luks"),
            (self.bitmap, " bitmap"),
            (self.foreign, " foreign snapshots"),
        ] {
            if set {
                words.push_str(word);
            }
        }
        if let Some(backing) = self.backing {
            words.push_str(&format!(" backing={backing:?}"));
        }
        words
    }

    /// A disk size: a few MiB, not a multiple of anything but a sector, and with small clusters
    /// enough for a first-level table longer than a cluster.
    pub(super) fn size(&self, random: &mut SplitMix64) -> u64 {
        let (low, high) = if self.cluster <= 4096 { (2, 4) } else { (2, 7) };
        random.between(low << 20, high << 20) & !511
    }

    /// Makes the image and gives what the guest sees in it.
    pub(super) fn create(&self, scratch: &Scratch, random: &mut SplitMix64) -> (Image, Vec<u8>) {
        let size = self.size(random);
        let options = self.options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let path = scratch.join("disk.qcow2");
        let mut content = vec![0; size as usize];
        let image = if let Some(kind) = self.backing {
            let length = match kind {
                Backing::Smaller => (size / 2) & !511,
                Backing::Larger | Backing::Qcow2 => size + (1 << 20),
            };
            let behind = random.bytes(length as usize);
            let shared = behind.len().min(content.len());
            content[..shared].copy_from_slice(&behind[..shared]);
            let raw = scratch.join("behind.raw");
            std::fs::write(&raw, behind).expect("a backing file");
            if kind == Backing::Qcow2 {
                let name = scratch.join("behind.qcow2");
                let convert = ["convert", "-f", "raw", "-O", "qcow2"].map(Into::into);
                let files = [raw.into_os_string(), name.clone().into_os_string()];
                snapslot_test_support::qemu_img(convert.into_iter().chain(files)).expect_success();
                Image::create_backed(path, &options, size, (&name, "qcow2"))
            } else {
                Image::create_backed(path, &options, size, (&raw, "raw"))
            }
        } else if self.luks {
            Image::create_luks(path, &options, size)
        } else {
            Image::create(path, &options, size)
        };
        (image, content)
    }
}
