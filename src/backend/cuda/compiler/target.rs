//! What code is compiled for.

/// The kind of code that NVRTC makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// Machine code of one architecture, which also runs on later ones of the same major version.
    Cubin,
    /// Virtual instructions that the driver compiles (or, in the tests, executes).
    Ptx,
}

impl Code {
    /// The usual file extension.
    pub fn extension(self) -> &'static str {
        match self {
            Code::Cubin => "cubin",
            Code::Ptx => "ptx",
        }
    }
}

/// A kind of code, and the architecture that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Cubin or PTX.
    pub code: Code,
    /// Compute capability times ten: 90 is 9.0.
    pub architecture: u32,
}

impl Target {
    /// The best cubin for a card, among the architectures that a compiler supports; `None` if the card is of a major version
    /// that the compiler does not know.
    pub fn cubin(compute_capability: (u32, u32), supported: &[u32]) -> Option<Self> {
        let (major, minor) = compute_capability;
        let runs = |&architecture: &u32| architecture / 10 == major && architecture % 10 <= minor;
        let architecture = supported.iter().copied().filter(runs).max()?;
        Some(Self { code: Code::Cubin, architecture })
    }

    /// The best PTX for a card; `None` if the compiler supports only later cards.
    pub fn ptx(compute_capability: (u32, u32), supported: &[u32]) -> Option<Self> {
        let (major, minor) = compute_capability;
        let architecture =
            supported.iter().copied().filter(|&architecture| architecture <= major * 10 + minor).max()?;
        Some(Self { code: Code::Ptx, architecture })
    }

    /// `sm_90` or `compute_90`.
    pub fn name(self) -> String {
        match self.code {
            Code::Cubin => format!("sm_{}", self.architecture),
            Code::Ptx => format!("compute_{}", self.architecture),
        }
    }

    /// The compiler's options, with these names defined.
    pub fn options(self, defines: &[(&str, &str)]) -> Vec<String> {
        let mut options = vec![format!("--gpu-architecture={}", self.name()), "--std=c++17".to_owned()];
        if self.code == Code::Ptx {
            // Source lines double a cubin's size, which is loaded; in PTX they name the line of a fault.
            options.push("-lineinfo".to_owned());
        }
        options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUPPORTED: &[u32] = &[75, 80, 86, 87, 89, 90, 100, 120];

    #[test]
    fn a_cubin_is_for_the_same_major_version_and_no_later_minor_one() {
        let cubin = |capability| Target::cubin(capability, SUPPORTED).map(Target::name);
        assert_eq!(cubin((9, 0)).as_deref(), Some("sm_90"));
        assert_eq!(cubin((8, 8)).as_deref(), Some("sm_87"));
        assert_eq!(cubin((12, 1)).as_deref(), Some("sm_120"));
        assert_eq!(cubin((11, 0)), None);
    }

    #[test]
    fn ptx_is_for_the_latest_architecture_up_to_the_card() {
        let ptx = |capability| Target::ptx(capability, SUPPORTED).map(Target::name);
        assert_eq!(ptx((9, 0)).as_deref(), Some("compute_90"));
        assert_eq!(ptx((11, 0)).as_deref(), Some("compute_100"));
        assert_eq!(ptx((7, 0)), None);
    }

    #[test]
    fn only_ptx_carries_source_lines() {
        let target = |code| Target { code, architecture: 80 };
        assert_eq!(target(Code::Cubin).options(&[("A", "1")]), ["--gpu-architecture=sm_80", "--std=c++17", "-DA=1"]);
        assert!(target(Code::Ptx).options(&[]).contains(&"-lineinfo".to_owned()));
    }
}
