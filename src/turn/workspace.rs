//! What a turn names on the disk, looked at before Codex sees it: app-server checks neither the
//! directories nor the git repository, and drops an image that it can't read without a word.
//!
//! The look is a snapshot: what is there now may be gone when Codex comes to it. It tells a
//! caller's mistake, it is not what confines Codex; that is the sandbox. Only where the policy names roots
//! is it a bound: then what is named is opened beneath them (see [`crate::turn::roots`]).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::model::options::ThreadOptions;
use crate::model::policy::Policy;
use crate::model::refusal::{Faults, FieldViolation, Refusal};
use crate::model::request::{TurnRequest, UserInput};
use crate::model::workspace::Workspace;
use crate::turn::looks::Looks;
use crate::turn::pixels::{Format, ImageSum};
use crate::turn::roots::{Astray, Beneath};

/// Largest image that is passed on, in bytes.
pub(crate) const MAX_IMAGE_BYTES: u64 = 20 << 20;

/// Where what is named on the disk must lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confinement<'a> {
    /// Says where.
    pub(crate) policy: &'a Policy,
    /// Most bytes of the images of one call as they are sent to Codex, where they are read here.
    pub(crate) most_image_data: usize,
}

/// What came of a look.
#[derive(Debug)]
pub(crate) struct Looked {
    /// Where the turn works.
    pub(crate) workspace: Workspace,
    /// All its images in sum.
    pub(crate) images: ImageSum,
    /// What is said, as it may be given to Codex.
    pub(crate) inputs: Vec<UserInput>,
}

/// Looks at the directories of `options` and the images and skills of `inputs`, whose places are those in the
/// request, and adds the images up. `default_directory` is where a turn works that names no directory.
///
/// Where the policy has no roots the workspace has the paths as they were given: Codex's own configuration
/// knows directories (trusted projects, for example) by the path that was typed, not by where links lead.
/// Where it has, the paths are those without links, and images come with their data: what somebody swaps
/// on the disk afterwards leads nowhere else.
///
/// # Errors
/// What is missing or wrong, by the field's path; [`Refusal::PolicyDenied`] where something is outside of the
/// roots; [`Refusal::OutOfResources`] if the file system does not answer in time.
pub(crate) async fn check(
    looks: &Looks,
    options: &ThreadOptions,
    inputs: Vec<UserInput>,
    default_directory: &Path,
    confinement: Confinement<'_>,
) -> Result<Looked, Refusal> {
    look(looks, options, inputs, default_directory, ImageSum::default(), confinement, true).await
}

/// Adds to what a policy denies of a request what of it lies outside of the roots.
pub(crate) async fn denied(
    looks: &Looks,
    request: TurnRequest,
    default_directory: &Path,
) -> Refusal {
    let TurnRequest { thread_options, inputs, policy, mut denied, .. } = request;
    let confinement = Confinement { policy: &policy, most_image_data: 0 };
    let sum = ImageSum::default();
    let mut look = Look::of(&thread_options, &inputs, default_directory, sum, confinement, true);
    // The request is denied, whether the disk can be looked at or not.
    if let Err(Refusal::PolicyDenied(outside)) = looks.take(move || look.confine().map(drop)).await
    {
        denied.extend(outside);
    }
    Refusal::PolicyDenied(denied)
}

/// Looks at the images and skills of `inputs` alone, as [`check`] does, and adds them to `images`: for a turn that
/// has its directories, and those images.
///
/// # Errors
/// As [`check`].
pub(crate) async fn check_images(
    looks: &Looks,
    inputs: Vec<UserInput>,
    images: ImageSum,
    confinement: Confinement<'_>,
) -> Result<(Vec<UserInput>, ImageSum), Refusal> {
    let is_on_disk = |input: &UserInput| match input {
        UserInput::LocalImage(_)
        | UserInput::ImageUrl(_)
        | UserInput::Skill { .. }
        | UserInput::Mention { .. } => true,
        UserInput::Text(_) | UserInput::External { .. } => false,
    };
    if !inputs.iter().any(is_on_disk) {
        return Ok((inputs, images));
    }
    let anywhere = ThreadOptions { skip_git_repo_check: Some(true), ..ThreadOptions::default() };
    let looked = look(looks, &anywhere, inputs, Path::new("/"), images, confinement, false).await?;
    Ok((looked.inputs, looked.images))
}

/// Looks whether the directories of a turn are still where they were seen, within the roots: somebody may have
/// put a link in the place of one.
///
/// # Errors
/// [`Refusal::PolicyDenied`]; [`Refusal::OutOfResources`] if the file system does not answer in time.
pub(crate) async fn check_again(
    looks: &Looks,
    workspace: &Workspace,
    policy: &Policy,
) -> Result<(), Refusal> {
    let Some(roots) = Roots::of(policy) else { return Ok(()) };
    let Workspace { working_directory, additional_directories } = workspace.clone();
    let work = move || {
        let named = [(DIRECTORY.to_owned(), working_directory)].into_iter();
        let additional = additional_directories.into_iter().enumerate();
        let additional = additional.map(|(at, path)| (additional_directory(at), path));
        let mut denied = Faults::default();
        for (field, path) in named.chain(additional) {
            match Beneath::open(&roots.directories, &path) {
                Ok(found) if found.path == path => {}
                Ok(_) | Err(_) => roots.deny(field, &path, &mut denied),
            }
        }
        denied.or_deny(())
    };
    looks.take(work).await
}

/// Looks whether what an answer lets commands write to lies in the roots.
///
/// # Errors
/// As [`check_again`].
pub(crate) async fn check_grants(
    looks: &Looks,
    written: Vec<Option<String>>,
    policy: &Policy,
) -> Result<(), Refusal> {
    const FIELD: &str = "permissions.permissions_json";
    let Some(roots) = Roots::of(policy).filter(|_| !written.is_empty()) else { return Ok(()) };
    let work = move || {
        let mut denied = Faults::default();
        for path in written {
            let path = PathBuf::from(path.unwrap_or_default());
            match Beneath::open(&roots.directories, &path) {
                // Codex goes by the path.
                Ok(found) if found.path == path => {}
                Ok(_) | Err(_) => roots.deny(FIELD.to_owned(), &path, &mut denied),
            }
        }
        denied.or_deny(())
    };
    looks.take(work).await
}

const DIRECTORY: &str = "thread_options.working_directory";

fn additional_directory(at: usize) -> String {
    format!("thread_options.additional_directories[{at}]")
}

async fn look(
    looks: &Looks,
    options: &ThreadOptions,
    mut inputs: Vec<UserInput>,
    default_directory: &Path,
    sum: ImageSum,
    confinement: Confinement<'_>,
    has_directories: bool,
) -> Result<Looked, Refusal> {
    let look = Look::of(options, &inputs, default_directory, sum, confinement, has_directories);
    let Seen { workspace, images, read, real } = looks.take(move || look.take()).await?;
    for (at, data) in read {
        inputs[at] = UserInput::ImageUrl(data);
    }
    for (at, path) in real {
        if let UserInput::Skill { path: given, .. } = &mut inputs[at] {
            *given = path.to_string_lossy().into_owned();
        }
    }
    Ok(Looked { workspace, images, inputs })
}

/// The directories in one of which everything must lie.
#[derive(Debug)]
struct Roots {
    directories: Vec<PathBuf>,
    /// What says so.
    setting: String,
}

impl Roots {
    fn of(policy: &Policy) -> Option<Roots> {
        let directories = policy.roots.clone()?;
        Some(Roots { directories, setting: policy.setting("roots") })
    }

    fn deny(&self, field: String, path: &Path, denied: &mut Faults) {
        let roots: Vec<String> =
            self.directories.iter().map(|root| root.display().to_string()).collect();
        let (path, roots, setting) = (path.display(), roots.join(", "), &self.setting);
        denied.add(
            field,
            format!(
                "{path} does not lie in what is allowed, {roots}, or leads out of it ({setting})"
            ),
        );
    }
}

/// Everything that one look looks at. Blocks.
struct Look {
    workspace: Workspace,
    has_directories: bool,
    needs_git: bool,
    images: Vec<(usize, Image)>,
    skills: Vec<(usize, PathBuf)>,
    mentions: Vec<(usize, PathBuf)>,
    sum: ImageSum,
    roots: Option<Roots>,
    most_image_data: usize,
}

/// What it has seen.
struct Seen {
    workspace: Workspace,
    images: ImageSum,
    // The images that were read, as addresses with their data.
    read: Vec<(usize, String)>,
    // The paths of skills without links.
    real: Vec<(usize, PathBuf)>,
}

enum Image {
    File(PathBuf),
    /// One in the roots, or why there is none.
    Opened(PathBuf, Result<Beneath, io::Error>),
    /// A `data:` address.
    Inline(String),
}

impl Look {
    /// At what these name.
    fn of(
        options: &ThreadOptions,
        inputs: &[UserInput],
        default_directory: &Path,
        sum: ImageSum,
        Confinement { policy, most_image_data }: Confinement<'_>,
        has_directories: bool,
    ) -> Look {
        let workspace = Workspace {
            working_directory: options
                .working_directory
                .clone()
                .unwrap_or_else(|| default_directory.to_owned()),
            additional_directories: options.additional_directories.clone().unwrap_or_default(),
        };
        let images = inputs
            .iter()
            .enumerate()
            .filter_map(|(at, input)| match input {
                UserInput::LocalImage(path) => Some((at, Image::File(PathBuf::from(path)))),
                UserInput::ImageUrl(address) => Some((at, Image::Inline(address.clone()))),
                UserInput::Text(_)
                | UserInput::Skill { .. }
                | UserInput::Mention { .. }
                | UserInput::External { .. } => None,
            })
            .collect();
        let skills = inputs
            .iter()
            .enumerate()
            .filter_map(|(at, input)| match input {
                UserInput::Skill { path, .. } => Some((at, PathBuf::from(path))),
                _ => None,
            })
            .collect();
        let mentions = inputs
            .iter()
            .enumerate()
            .filter_map(|(at, input)| match input {
                UserInput::Mention { path, .. } if path.starts_with('/') => {
                    Some((at, PathBuf::from(path)))
                }
                _ => None,
            })
            .collect();
        let needs_git = options.skip_git_repo_check != Some(true);
        let roots = Roots::of(policy);
        Look {
            workspace,
            has_directories,
            needs_git,
            images,
            skills,
            mentions,
            sum,
            roots,
            most_image_data,
        }
    }

    fn take(mut self) -> Result<Seen, Refusal> {
        // What the disk says of what is denied is not told.
        let missing = self.confine()?;
        if let Some(missing) = missing {
            return Err(missing);
        }
        let Look { workspace, needs_git, images, skills, mut sum, roots, most_image_data, .. } =
            self;
        let Workspace { working_directory, additional_directories } = &workspace;
        check_directory(DIRECTORY, working_directory)?;
        if needs_git && !is_in_git_repository(working_directory) {
            return Err(Refusal::NotAGitRepository {
                field: DIRECTORY.to_owned(),
                path: working_directory.clone(),
                can_be_skipped: true,
            });
        }
        for (at, directory) in additional_directories.iter().enumerate() {
            check_directory(&additional_directory(at), directory)?;
        }
        let mut violations = Vec::new();
        for (at, path) in &skills {
            let fault = match std::fs::metadata(path) {
                Ok(found) if found.is_file() => continue,
                Ok(_) => "is not a regular file".to_owned(),
                Err(error) => said(&error),
            };
            let fault = format!("{} {fault}; give the path of a SKILL.md", path.display());
            violations.push(FieldViolation::new(format!("inputs[{at}].skill.path"), fault));
        }
        let mut read = Vec::new();
        let mut left = most_image_data;
        for (at, image) in images {
            let (field, named, looked) = match image {
                Image::File(path) => {
                    let looked = check_image(&path, &mut sum);
                    ("local_image.path", path.display().to_string(), looked)
                }
                Image::Opened(path, opened) => {
                    let looked = opened.map_err(Fault::from).and_then(|found| {
                        let data = read_image(&found, &mut sum, &mut left)?;
                        read.push((at, data));
                        Ok(())
                    });
                    ("local_image.path", path.display().to_string(), looked)
                }
                Image::Inline(address) => {
                    let looked = sum.add_address(&address).map_err(Fault::OfImage);
                    ("image_url", "the image".to_owned(), looked)
                }
            };
            match looked {
                Ok(()) => {}
                Err(Fault::OfImage(fault)) => violations.push(FieldViolation::new(
                    format!("inputs[{at}].{field}"),
                    format!("{named} {fault}"),
                )),
                Err(Fault::OfMachine(error)) => {
                    return Err(Refusal::OutOfResources {
                        cause: error.to_string(),
                        retry_after: Duration::from_secs(1),
                    });
                }
            }
            // The others are too much as well, and take time.
            if sum.fault().is_some() {
                break;
            }
        }
        let real = if roots.is_some() { skills } else { Vec::new() };
        if violations.is_empty() {
            Ok(Seen { workspace, images: sum, read, real })
        } else {
            Err(Refusal::InvalidInput(violations))
        }
    }

    /// Puts what lies in the roots in the place of what was named, and gives the first that is missing there.
    fn confine(&mut self) -> Result<Option<Refusal>, Refusal> {
        let Some(roots) = &self.roots else { return Ok(None) };
        let mut denied = Faults::default();
        let mut missing = None;
        let mut open = |field: String, path: &Path| match Beneath::open(&roots.directories, path) {
            Ok(found) => Some(Ok(found)),
            Err(Astray::Fault(error)) => Some(Err(error)),
            Err(Astray::Outside) => {
                roots.deny(field, path, &mut denied);
                None
            }
        };
        let Workspace { working_directory, additional_directories } = &mut self.workspace;
        let additional = additional_directories.iter_mut().enumerate();
        let additional = additional.map(|(at, path)| (additional_directory(at), path));
        let directories = [(DIRECTORY.to_owned(), working_directory)].into_iter().chain(additional);
        for (field, path) in directories.filter(|_| self.has_directories) {
            match open(field.clone(), path) {
                Some(Ok(found)) => *path = found.path,
                Some(Err(error)) => {
                    let (path, cause) = (path.clone(), said(&error));
                    missing.get_or_insert(Refusal::WorkingDirectoryMissing { field, path, cause });
                }
                None => {}
            }
        }
        for (at, path) in &mut self.skills {
            if let Some(Ok(found)) = open(format!("inputs[{at}].skill.path"), path) {
                *path = found.path;
            }
        }
        for (at, path) in &self.mentions {
            open(format!("inputs[{at}].mention.path"), path);
        }
        for (at, image) in &mut self.images {
            if let Image::File(path) = image
                && let Some(opened) = open(format!("inputs[{at}].local_image.path"), path)
            {
                *image = Image::Opened(std::mem::take(path), opened);
            }
        }
        denied.or_deny(missing)
    }
}

fn check_directory(field: &str, path: &Path) -> Result<(), Refusal> {
    let cause = if !path.is_absolute() {
        "is not an absolute path; give one".to_owned()
    } else {
        // Through the directory's own `.`: a directory that may not be entered fails here too.
        match std::fs::metadata(path.join(".")) {
            Ok(_) => return Ok(()),
            Err(error) => said(&error),
        }
    };
    Err(Refusal::WorkingDirectoryMissing { field: field.to_owned(), path: path.to_owned(), cause })
}

/// As `codex exec` 0.169.0 sees it: a repository's root here or in a directory above, by the path as
/// it was given.
pub(super) fn is_in_git_repository(directory: &Path) -> bool {
    directory.ancestors().any(is_repository_root)
}

/// Whether `.git` makes this directory one: a directory that has a `HEAD`, whatever that is, or
/// anything else, such as the file of a worktree or a submodule, whose target is not looked at.
///
/// An empty `.git` is none: Codex's sandbox mounts over one to keep commands from making their own,
/// and leaves it behind, in the working directory and in the temporary one, when it is killed.
fn is_repository_root(directory: &Path) -> bool {
    let git = directory.join(".git");
    match std::fs::metadata(&git) {
        // By the link's own entry: git once made HEAD a link to a branch that may not be there yet.
        Ok(found) if found.is_dir() => git.join("HEAD").symlink_metadata().is_ok(),
        Ok(_) => true,
        Err(_) => false,
    }
}

/// Why an image can't be passed on.
enum Fault {
    /// The caller's mistake, as the end of a sentence about the path.
    OfImage(String),
    /// Not the caller's: the same request may pass later.
    OfMachine(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match Errno::from_io_error(&error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Fault::OfMachine(error),
            _ => Fault::OfImage(said(&error)),
        }
    }
}

fn refused<T>(fault: &str) -> Result<T, Fault> {
    Err(Fault::OfImage(format!("{fault}; give a PNG, JPEG, GIF or WebP file")))
}

fn check_image(path: &Path, sum: &mut ImageSum) -> Result<(), Fault> {
    if !path.is_absolute() {
        return refused("is not an absolute path");
    }
    // First without opening it: to open a device may do something.
    if !std::fs::metadata(path)?.is_file() {
        return refused("is not a regular file");
    }
    // Without waiting: it may have become a FIFO meanwhile, which would wait for a writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    check_opened(file, sum).map(|_| ())
}

/// Reads an image in the roots, as an address with its data of which at most so much is left.
fn read_image(found: &Beneath, sum: &mut ImageSum, left: &mut usize) -> Result<String, Fault> {
    if !found.is_file()? {
        return refused("is not a regular file");
    }
    let file = found.read()?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let (mut file, format) = check_opened(file, sum)?;
    // Four characters for three bytes.
    let data = length.saturating_add(2) / 3 * 4;
    let Some(rest) = left.checked_sub(data) else {
        return Err(Fault::OfImage(format!(
            "is one too many: it has {data} bytes as data, and {left} are left of \
             limits.max_message_bytes; give fewer images or smaller ones"
        )));
    };
    *left = rest;
    file.rewind()?;
    let mut image = Vec::with_capacity(length);
    // No more than was looked at, if it grows.
    file.take(length as u64).read_to_end(&mut image)?;
    Ok(format!("data:{};base64,{}", format.media_type(), BASE64_STANDARD.encode(image)))
}

/// Looks at an image that is open, and adds it.
fn check_opened(mut file: File, sum: &mut ImageSum) -> Result<(File, Format), Fault> {
    let opened = file.metadata()?;
    if !opened.is_file() {
        return refused("is not a regular file");
    }
    if opened.len() > MAX_IMAGE_BYTES {
        return Err(Fault::OfImage(format!(
            "is {} bytes large; give an image of at most {MAX_IMAGE_BYTES}",
            opened.len()
        )));
    }
    let Some(format) = Format::of(&start_of(&mut file)?) else {
        return refused("is no image that Codex knows");
    };
    sum.add(&mut file)?.map_err(Fault::OfImage)?;
    Ok((file, format))
}

/// The first bytes, as many as a signature has.
fn start_of(file: &mut File) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    file.take(12).read_to_end(&mut start)?;
    Ok(start)
}

/// What the system says, as the end of a sentence about a path.
fn said(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "does not exist".to_owned(),
        ErrorKind::NotADirectory => "is not a directory".to_owned(),
        ErrorKind::PermissionDenied => "can't be read by the sidecar: permission denied".to_owned(),
        _ => format!("can't be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::pixels::tests::png;

    async fn check(
        options: &ThreadOptions,
        inputs: &[UserInput],
        default_directory: &Path,
    ) -> Result<(Workspace, ImageSum), Refusal> {
        let policy = Policy::default();
        let looks = Looks::default();
        let inputs = inputs.to_vec();
        let looked = super::check(&looks, options, inputs, default_directory, within(&policy));
        looked.await.map(|looked| (looked.workspace, looked.images))
    }

    async fn check_images(inputs: &[UserInput], images: ImageSum) -> Result<ImageSum, Refusal> {
        let policy = Policy::default();
        let looks = Looks::default();
        let looked = super::check_images(&looks, inputs.to_vec(), images, within(&policy)).await;
        looked.map(|looked| looked.1)
    }

    fn within(policy: &Policy) -> Confinement<'_> {
        Confinement { policy, most_image_data: 1 << 20 }
    }

    const PNG: &[u8] =
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0 and so on";

    fn options(directory: &Path) -> ThreadOptions {
        ThreadOptions { working_directory: Some(directory.to_owned()), ..ThreadOptions::default() }
    }

    fn image(path: PathBuf) -> UserInput {
        UserInput::LocalImage(path.to_string_lossy().into_owned())
    }

    fn bare() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    /// A directory that is in no repository. The temporary one may be in one: it may be anywhere.
    fn outside() -> PathBuf {
        let candidates = [std::env::temp_dir(), "/dev/shm".into(), "/proc".into(), "/".into()];
        let outside = |directory: &PathBuf| {
            directory.is_dir() && !directory.ancestors().any(|above| above.join(".git").exists())
        };
        candidates.into_iter().find(outside).expect("the root directory itself is in a repository")
    }

    #[tokio::test]
    async fn a_directory_below_a_git_directory_or_a_worktree_file_passes() {
        let repository = bare();
        let below = repository.path().join("a/b");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::create_dir(repository.path().join(".git")).unwrap();
        std::fs::write(repository.path().join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
        let (workspace, _) = check(&options(&below), &[], Path::new("/")).await.unwrap();
        assert_eq!(workspace.working_directory, below);

        let worktree = bare();
        std::fs::write(worktree.path().join(".git"), "gitdir: elsewhere").unwrap();
        // No directory in the options: the default one is looked at.
        let (workspace, _) = check(&ThreadOptions::default(), &[], worktree.path()).await.unwrap();
        assert_eq!(workspace.working_directory, worktree.path());
    }

    /// Each form as `codex exec` 0.169.0 takes it.
    #[test]
    fn what_codex_exec_takes_for_a_repository_is_one_and_nothing_else_is() {
        use std::os::unix::fs::symlink;

        type Make = fn(&Path);
        let directory = |git: &Path| std::fs::create_dir(git).unwrap();
        let with_head: Make = |git| {
            std::fs::create_dir(git).unwrap();
            std::fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        };
        let forms: [(&str, bool, Make); 12] = [
            ("nothing", false, |_| {}),
            ("an empty directory", false, directory),
            ("a directory of other things", false, |git| {
                std::fs::create_dir(git).unwrap();
                std::fs::write(git.join("config"), "[core]\n").unwrap();
            }),
            ("a directory with HEAD", true, with_head),
            ("a directory with HEAD as a link to a branch that is not there", true, |git| {
                std::fs::create_dir(git).unwrap();
                symlink("refs/heads/main", git.join("HEAD")).unwrap();
            }),
            ("a directory with HEAD as a directory", true, |git| {
                std::fs::create_dir_all(git.join("HEAD")).unwrap();
            }),
            ("a worktree's file", true, |git| std::fs::write(git, "gitdir: elsewhere\n").unwrap()),
            ("an empty file", true, |git| std::fs::write(git, "").unwrap()),
            ("a link to a repository", true, |git| {
                let other = git.with_file_name("other");
                std::fs::create_dir(&other).unwrap();
                std::fs::write(other.join("HEAD"), "ref: refs/heads/main\n").unwrap();
                symlink("other", git).unwrap();
            }),
            ("a link to an empty directory", false, |git| {
                std::fs::create_dir(git.with_file_name("other")).unwrap();
                symlink("other", git).unwrap();
            }),
            ("a link to nothing", false, |git| symlink("other", git).unwrap()),
            ("a repository without a working tree", false, |git| {
                std::fs::write(git.with_file_name("HEAD"), "ref: refs/heads/main\n").unwrap();
            }),
        ];
        for (form, is_one, make) in forms {
            let place = bare();
            make(&place.path().join(".git"));
            assert_eq!(is_repository_root(place.path()), is_one, "{form}");
        }
    }

    #[tokio::test]
    async fn outside_a_repository_only_who_skips_the_check_works() {
        let directory = outside();
        let mut options = options(&directory);
        let refusal = check(&options, &[], Path::new("/")).await.unwrap_err();
        assert!(
            matches!(&refusal, Refusal::NotAGitRepository { field, path, .. }
                if *field == "thread_options.working_directory" && *path == directory),
            "{refusal}"
        );
        options.skip_git_repo_check = Some(true);
        assert!(check(&options, &[], Path::new("/")).await.is_ok());
    }

    #[tokio::test]
    async fn directories_must_be_there_and_be_directories() {
        let directory = bare();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let gone = directory.path().join("gone");
        let cases = [
            (gone.clone(), "does not exist"),
            (file.clone(), "is not a directory"),
            (file.join("below"), "is not a directory"),
            (PathBuf::from("relative"), "is not an absolute path"),
            (PathBuf::from("/nul\0"), "can't be read"),
        ];
        for (path, expected) in cases {
            let refusal = check(&options(&path), &[], Path::new("/")).await.unwrap_err();
            let Refusal::WorkingDirectoryMissing { field, path: shown, cause } = refusal else {
                panic!("{}: {refusal}", path.display());
            };
            assert_eq!((field.as_str(), &shown), ("thread_options.working_directory", &path));
            assert!(cause.contains(expected), "{cause}");
        }

        let mut options = options(directory.path());
        options.skip_git_repo_check = Some(true);
        options.additional_directories = Some(vec![directory.path().to_owned(), gone]);
        let refusal = check(&options, &[], Path::new("/")).await.unwrap_err();
        assert!(
            matches!(&refusal, Refusal::WorkingDirectoryMissing { field, .. }
                if field == "thread_options.additional_directories[1]"),
            "{refusal}"
        );
    }

    #[tokio::test]
    async fn every_image_that_codex_would_drop_is_named() {
        let directory = bare();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("good.png"), PNG).unwrap();
        std::fs::write(path("text.png"), "not an image").unwrap();
        std::fs::write(path("empty.png"), "").unwrap();
        File::create(path("huge.png")).unwrap().set_len(MAX_IMAGE_BYTES + 1).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("fifo.png"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let mut options = options(directory.path());
        options.skip_git_repo_check = Some(true);
        let inputs = [
            image(path("good.png")),
            image(path("text.png")),
            UserInput::Text("look".to_owned()),
            image(path("empty.png")),
            image(path("huge.png")),
            image(path("fifo.png")),
            image(path("gone.png")),
            image(directory.path().to_owned()),
        ];
        let refusal = check(&options, &inputs, Path::new("/")).await.unwrap_err();
        let Refusal::InvalidInput(violations) = refusal else { panic!("{refusal}") };
        let expected = [
            (1, "is no image"),
            (3, "is no image"),
            (4, "bytes large"),
            (5, "is not a regular file"),
            (6, "does not exist"),
            (7, "is not a regular file"),
        ];
        assert_eq!(violations.len(), expected.len());
        for (FieldViolation { field, description }, (at, fault)) in violations.iter().zip(expected)
        {
            assert_eq!(*field, format!("inputs[{at}].local_image.path"));
            assert!(description.contains(fault), "{description}");
        }
        assert!(check(&options, &inputs[..1], Path::new("/")).await.is_ok());
    }

    fn inline(image: &[u8]) -> UserInput {
        let data = BASE64_STANDARD.encode(image);
        UserInput::ImageUrl(format!("data:image/png;base64,{data}"))
    }

    async fn refused(inputs: &[UserInput], images: ImageSum) -> (String, String) {
        let refusal = check_images(inputs, images).await.unwrap_err();
        let Refusal::InvalidInput(violations) = refusal else { panic!("{refusal}") };
        let [FieldViolation { field, description }] = violations.try_into().unwrap();
        (field, description)
    }

    #[tokio::test]
    async fn an_inline_image_of_too_many_pixels_is_refused() {
        assert!(check_images(&[inline(&png(5_000, 5_000))], ImageSum::default()).await.is_ok());
        let (field, fault) = refused(&[inline(&png(16_000, 16_000))], ImageSum::default()).await;
        assert_eq!(field, "inputs[0].image_url");
        assert!(fault.contains("is 16000 × 16000 pixels large"), "{fault}");
    }

    #[tokio::test]
    async fn the_image_that_makes_them_too_much_is_named_and_those_behind_it_are_not() {
        let directory = bare();
        let path = directory.path().join("20MiB.png");
        std::fs::write(&path, PNG).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(MAX_IMAGE_BYTES).unwrap();
        let file = || image(path.clone());
        let inputs = [file(), file(), UserInput::Text("x".to_owned()), inline(PNG), file(), file()];
        let (field, fault) = refused(&inputs, ImageSum::default()).await;
        assert_eq!(field, "inputs[4].local_image.path");
        let sum = 3 * MAX_IMAGE_BYTES + PNG.len() as u64;
        assert!(fault.contains(&format!("together they have {sum} bytes")), "{fault}");

        let large = inline(&png(7_000, 7_000));
        let five = check_images(&vec![large.clone(); 5], ImageSum::default()).await.unwrap();
        let (field, fault) = refused(&[inline(PNG), large], five).await;
        assert_eq!(field, "inputs[1].image_url");
        assert!(fault.contains("1176000004 bytes once they are decoded"), "{fault}");

        let (field, _) = refused(&vec![inline(PNG); 300], ImageSum::default()).await;
        assert_eq!(field, "inputs[256].image_url");
    }

    #[test]
    fn the_four_kinds_of_images_are_told_by_their_first_bytes() {
        for start in [PNG, b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "] {
            assert!(Format::of(start).is_some(), "{start:?}");
        }
        for start in [&b""[..], b"\x89PNG", b"GIF88a", b"RIFF\0\0\0\0WAVE", b"BM", b"<svg"] {
            assert!(Format::of(start).is_none(), "{start:?}");
        }
    }
}
