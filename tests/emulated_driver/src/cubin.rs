//! What a cubin, an ELF file, says about its kernels.
use std::fmt;

/// A kernel of a cubin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CubinKernel {
    pub(crate) name: String,
    /// Sizes of the parameters in bytes.
    pub(crate) parameters: Vec<u32>,
}

impl fmt::Display for CubinKernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<String> = self.parameters.iter().map(u32::to_string).collect();
        write!(formatter, "{}({})", self.name, sizes.join(", "))
    }
}

/// The first bytes of a cubin.
pub(crate) const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// Bytes of an ELF file header.
pub(crate) const HEADER_BYTES: usize = 64;

/// How long the file with that header is: its section headers are at the end.
pub(crate) fn file_bytes(header: &[u8; HEADER_BYTES]) -> Option<usize> {
    let (offset, entry_bytes, entries) = (integer(header, 40, 8)?, integer(header, 58, 2)?, integer(header, 60, 2)?);
    let (programs, program_bytes, program_count) =
        (integer(header, 32, 8)?, integer(header, 54, 2)?, integer(header, 56, 2)?);
    Some((offset + entry_bytes * entries).max(programs + program_bytes * program_count))
}

/// The kernels of a cubin, by their sections `.nv.info.KERNEL`; `None` if the file is damaged.
pub(crate) fn kernels(file: &[u8]) -> Option<Vec<CubinKernel>> {
    let (headers, header_bytes) = (integer(file, 40, 8)?, integer(file, 58, 2)?);
    let header = |section: usize| file.get(headers + section * header_bytes..);
    let names = integer(header(integer(file, 62, 2)?)?, 24, 8)?;
    let mut kernels = vec![];
    for section in 0..integer(file, 60, 2)? {
        let header = header(section)?;
        let name = file.get(names + integer(header, 0, 4)?..)?;
        let name = &name[..name.iter().position(|&byte| byte == 0)?];
        let Some(kernel) = name.strip_prefix(b".nv.info.") else { continue };
        let (start, len) = (integer(header, 24, 8)?, integer(header, 32, 8)?);
        let parameters = parameter_sizes(file.get(start..start + len)?)?;
        kernels.push(CubinKernel { name: String::from_utf8_lossy(kernel).into_owned(), parameters });
    }
    Some(kernels)
}

/// Sizes of the parameters, from the attributes of a kernel's section.
fn parameter_sizes(mut attributes: &[u8]) -> Option<Vec<u32>> {
    /// Format of attributes whose value is a block of bytes behind the length; others have four bytes in all.
    const SIZED_VALUE: u8 = 4;
    /// The attribute that describes a parameter.
    const PARAMETER: u8 = 0x17;
    let mut parameters = vec![];
    while let [format, attribute, ..] = *attributes {
        let len = if format == SIZED_VALUE { integer(attributes, 2, 2)? } else { 0 };
        if format == SIZED_VALUE && attribute == PARAMETER {
            // Index of the parameter at byte 4 of the value, its size above bit 18 of byte 8.
            parameters.push((integer(attributes, 8, 2)?, (integer(attributes, 12, 4)? >> 18) as u32));
        }
        attributes = attributes.get(4 + len..)?;
    }
    parameters.sort_unstable();
    Some(parameters.into_iter().map(|(_, bytes)| bytes).collect())
}

fn integer(bytes: &[u8], offset: usize, len: usize) -> Option<usize> {
    let mut value = [0; 8];
    value[..len].copy_from_slice(bytes.get(offset..offset + len)?);
    usize::try_from(u64::from_le_bytes(value)).ok()
}
