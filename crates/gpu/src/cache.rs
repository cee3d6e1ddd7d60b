//! Code that was compiled once is read from a folder after. A file is named by all that the code
//! depends on, so that none is ever out of date, and carries a sum, so that a broken one is
//! compiled again. It never removes files.
//!
//! Machine code for one architecture does not depend on the driver, so that the driver is no part
//! of the name; the compiler is, unless there is none: then any compiler's code will do.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::NoCode;
use crate::compile::{Code, compile, compiler_version, options};
use crate::kernels::Source;
use crate::probe::ComputeCapability;

const MAGIC: &[u8; 8] = b"EPSCODE1";

/// A folder of compiled kernels.
#[derive(Debug, Clone)]
pub struct CodeCache {
    folder: PathBuf,
}

/// Where code came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CodeSource {
    /// It was compiled now, and written into the folder.
    Compiled,
    /// It was compiled now, and could not be written there: the next start compiles it again.
    NotKept(NoCode),
    /// It was read from the folder.
    Read,
}

/// The folder for code where none is named: among this user's caches; none where there are no such.
pub fn usual_code_dir() -> Option<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Some(caches?.join("embedding-ps/kernels"))
}

/// The code of a source for devices of that compute capability: from the folder if there is one, or
/// compiled, and kept there. Where it can't be kept, the log says so.
pub fn code_in(
    folder: Option<&Path>,
    source: Source,
    capability: ComputeCapability,
) -> Result<Code, NoCode> {
    let Some(folder) = folder else { return compile(source, capability) };
    let (code, from) = CodeCache::new(folder).code(source, capability)?;
    if let CodeSource::NotKept(why) = from {
        tracing::warn!(%why, "kernels are compiled at each start");
    }
    Ok(code)
}

impl CodeCache {
    /// Keeps code in that folder, which is made when the first is written.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The code of a source for devices of that compute capability.
    pub fn code(
        &self,
        source: Source,
        capability: ComputeCapability,
    ) -> Result<(Code, CodeSource), NoCode> {
        let compiler = compiler_version();
        let stem = stem(source, capability);
        if let Some(code) = self.read(&stem, compiler) {
            return Ok((code, CodeSource::Read));
        }
        let code = compile(source, capability)?;
        let kept = self.write(&stem, compiler, &code);
        Ok((code, kept.map_or_else(CodeSource::NotKept, |()| CodeSource::Compiled)))
    }

    /// None for a file that is not there or not whole: either way it is compiled.
    fn read(&self, stem: &str, compiler: Option<(i32, i32)>) -> Option<Code> {
        match compiler {
            Some(compiler) => decode(&fs::read(self.file(stem, compiler)).ok()?),
            None => {
                let mut files: Vec<PathBuf> = fs::read_dir(&self.folder)
                    .ok()?
                    .filter_map(|entry| Some(entry.ok()?.path()))
                    .filter(|path| {
                        let name = path.file_name().and_then(|name| name.to_str());
                        name.is_some_and(|name| name.starts_with(stem) && name.ends_with(".code"))
                    })
                    .collect();
                files.sort();
                files.iter().rev().find_map(|path| decode(&fs::read(path).ok()?))
            }
        }
    }

    /// Through a file of another name, so that a process beside this one sees a whole one or none.
    fn write(&self, stem: &str, compiler: Option<(i32, i32)>, code: &Code) -> Result<(), NoCode> {
        let path = self.file(stem, compiler.unwrap_or_default());
        let said = |error: std::io::Error| NoCode::Cache {
            path: path.display().to_string(),
            said: error.to_string(),
        };
        fs::create_dir_all(&self.folder).map_err(said)?;
        let partial = path.with_extension(format!("partial{}", std::process::id()));
        fs::write(&partial, encode(code)).map_err(said)?;
        match fs::rename(&partial, &path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(said(error)),
            _ => Ok(()),
        }
    }

    fn file(&self, stem: &str, (major, minor): (i32, i32)) -> PathBuf {
        self.folder.join(format!("{stem}nvrtc{major}.{minor}.code"))
    }
}

/// A file's name without the compiler: the source, the architecture, and a digest of the text and
/// of what the compiler is told.
fn stem(source: Source, capability: ComputeCapability) -> String {
    let told = options(capability).join("\n");
    let digest = xxh3_128(format!("{told}\n\n{}", source.text).as_bytes());
    let name = source.name.trim_end_matches(".cu");
    let ComputeCapability { major, minor } = capability;
    format!("{name}-sm_{major}{minor}-{digest:032x}-")
}

/// The magic, the sum of what follows, u64 bytes of machine code, the machine code, the log.
fn encode(code: &Code) -> Vec<u8> {
    let mut body = (code.cubin.len() as u64).to_le_bytes().to_vec();
    body.extend(&code.cubin);
    body.extend(code.log.as_bytes());
    [MAGIC, &xxh3_64(&body).to_le_bytes()[..], &body].concat()
}

fn decode(bytes: &[u8]) -> Option<Code> {
    let (sum, body) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*sum) != xxh3_64(body) {
        return None;
    }
    let (length, rest) = body.split_first_chunk::<8>()?;
    let (cubin, log) = rest.split_at_checked(u64::from_le_bytes(*length).try_into().ok()?)?;
    Some(Code { cubin: cubin.to_vec(), log: String::from_utf8(log.to_vec()).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ROWS;

    const CAPABILITY: ComputeCapability = ComputeCapability { major: 9, minor: 0 };

    fn code() -> Code {
        Code { cubin: b"\x7fELF and so on".to_vec(), log: "0 bytes spill".to_owned() }
    }

    #[test]
    fn code_reads_back_and_a_broken_file_does_not() {
        let whole = encode(&code());
        assert_eq!(decode(&whole), Some(code()));
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            assert_eq!(decode(&broken), None, "byte {at}");
            assert_eq!(decode(&whole[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn code_is_kept_by_all_that_it_depends_on() {
        let here = stem(ROWS, CAPABILITY);
        assert!(here.starts_with("rows-sm_90-"), "{here}");
        assert_ne!(here, stem(ROWS, ComputeCapability { major: 8, minor: 0 }));
        assert_ne!(here, stem(Source { text: "another", ..ROWS }, CAPABILITY));
    }

    #[test]
    fn another_compilers_code_is_read_only_where_there_is_no_compiler() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CodeCache::new(&folder.path().join("deep/er"));
        let stem = stem(ROWS, CAPABILITY);
        assert_eq!(cache.read(&stem, None), None);
        cache.write(&stem, Some((13, 0)), &code()).unwrap();
        assert_eq!(cache.read(&stem, Some((13, 0))), Some(code()));
        assert_eq!(cache.read(&stem, Some((13, 1))), None);
        assert_eq!(cache.read(&stem, None), Some(code()));
        assert_eq!(cache.read("other-", None), None);
    }
}
