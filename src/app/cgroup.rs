//! The processors that tenants' workers get against each other: a group of cgroup v2 for each tenant that
//! has a weight.
//!
//! Only where the sidecar's own group is its own to divide: handed to it (`Delegate=yes` of systemd, a
//! container with a writable cgroup), with the cpu controller, and nobody else in it. A group that hands
//! processors on may have no process of its own, so the sidecar moves into one below it. Where any of that
//! can't be, nothing is changed, and one warning says so.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::config::Config;
use crate::model::id::Tenant;

/// What the groups are called: the sidecar's, and before the name of a tenant that of its workers.
const NAME: &str = "codex-sidecar";

/// The groups.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// The one that is divided.
    own: PathBuf,
    /// The one that the sidecar has moved into, if it had to.
    moved: Option<PathBuf>,
    tenants: BTreeMap<Tenant, PathBuf>,
}

impl Cgroups {
    /// Those of the tenants that have a weight; `None` where none has, or they can't be made.
    pub(super) fn of(config: &Config) -> Option<Cgroups> {
        let weights = config.tenants.values();
        let weights = weights.filter_map(|tenant| {
            tenant.cpu_weight.map(|weight| (tenant.config.tenant.clone(), weight))
        });
        let weights: BTreeMap<Tenant, u32> = weights.collect();
        if weights.is_empty() {
            return None;
        }
        match own().and_then(|own| Cgroups::divide(own, &weights)) {
            Ok(groups) => Some(groups),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "tenants.*.cpu_weight has no effect: the sidecar's cgroup can't be divided"
                );
                None
            }
        }
    }

    fn divide(own: PathBuf, weights: &BTreeMap<Tenant, u32>) -> io::Result<Cgroups> {
        let controllers = fs::read_to_string(own.join("cgroup.controllers"))?;
        if !controllers.split_whitespace().any(|name| name == "cpu") {
            let cause = format!("{} has no cpu controller", own.display());
            return Err(io::Error::other(cause));
        }
        let mut groups = Cgroups { own, moved: None, tenants: BTreeMap::new() };
        groups.hand_on()?;
        for (tenant, weight) in weights {
            let group = groups.own.join(format!("{NAME}-{}", tenant.0));
            make(&group)?;
            groups.tenants.insert(tenant.clone(), group.clone());
            fs::write(group.join("cpu.weight"), weight.to_string())?;
        }
        Ok(groups)
    }

    fn hand_on(&mut self) -> io::Result<()> {
        let on = || fs::write(self.own.join("cgroup.subtree_control"), "+cpu");
        match on() {
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                let group = self.own.join(NAME);
                make(&group)?;
                self.moved = Some(group.clone());
                // "0" is who writes it.
                fs::write(group.join("cgroup.procs"), "0")?;
                on()
            }
            on => on,
        }
    }

    /// What puts a worker of this tenant into its group, by the worker's id.
    pub(super) fn entrance(&self, tenant: &Tenant) -> Option<impl Fn(u32) + Send + Sync + use<>> {
        let procs = self.tenants.get(tenant)?.join("cgroup.procs");
        Some(move |pid: u32| {
            if let Err(error) = fs::write(&procs, pid.to_string()) {
                tracing::warn!(pid, %error, "a worker runs outside of its tenant's cgroup");
            }
        })
    }
}

/// Takes the groups away, as far as that can be: those with a process in them stay.
impl Drop for Cgroups {
    fn drop(&mut self) {
        for group in self.tenants.values() {
            let _ = fs::remove_dir(group);
        }
        if let Some(group) = &self.moved {
            let _ = fs::write(self.own.join("cgroup.subtree_control"), "-cpu");
            let _ = fs::write(self.own.join("cgroup.procs"), "0");
            let _ = fs::remove_dir(group);
        }
    }
}

fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        // A sidecar that was killed has left it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The directory of the group that this process is in.
fn own() -> io::Result<PathBuf> {
    let group = fs::read_to_string("/proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    own_of(&group, &mounts).ok_or_else(|| {
        io::Error::other("cgroup v2 is not mounted, or this process is in none of it")
    })
}

fn own_of(group: &str, mounts: &str) -> Option<PathBuf> {
    let group = Path::new(group.lines().find_map(|line| line.strip_prefix("0::"))?);
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then_some(())?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // What is mounted may be a part of the tree.
        Some(Path::new(point).join(group.strip_prefix(root).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> BTreeMap<Tenant, u32> {
        BTreeMap::from([(Tenant("a".to_owned()), 10), (Tenant("b".to_owned()), 1000)])
    }

    #[test]
    fn each_tenant_with_a_weight_has_a_group_of_it_which_its_workers_enter() {
        let own = tempfile::tempdir().unwrap();
        let at = |name: &str| fs::read_to_string(own.path().join(name)).unwrap();
        fs::write(own.path().join("cgroup.controllers"), "cpuset cpu memory\n").unwrap();
        let groups = Cgroups::divide(own.path().to_owned(), &weights()).unwrap();
        assert_eq!(at("cgroup.subtree_control"), "+cpu");
        assert_eq!(at("codex-sidecar-a/cpu.weight"), "10");
        assert_eq!(at("codex-sidecar-b/cpu.weight"), "1000");
        groups.entrance(&Tenant("b".to_owned())).unwrap()(77);
        assert_eq!(at("codex-sidecar-b/cgroup.procs"), "77");
        assert!(groups.entrance(&Tenant::default()).is_none());
    }

    #[test]
    fn where_the_group_can_not_be_divided_nothing_is_left_of_the_try() {
        let own = tempfile::tempdir().unwrap();
        let files = || fs::read_dir(own.path()).unwrap().count();
        let error = Cgroups::divide(own.path().to_owned(), &weights()).unwrap_err();
        assert_eq!((error.kind(), files()), (io::ErrorKind::NotFound, 0));
        fs::write(own.path().join("cgroup.controllers"), "memory cpuset\n").unwrap();
        let error = Cgroups::divide(own.path().to_owned(), &weights()).unwrap_err();
        assert!(error.to_string().ends_with("has no cpu controller"), "{error}");
        assert_eq!(files(), 1);
    }

    #[test]
    fn the_own_group_is_found_in_whatever_part_of_the_tree_is_mounted() {
        let found = |group: &str, mount: &str| {
            let mounts = format!(
                "23 1 0:28 / / rw - ext4 /dev/a rw\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup c cpu\n{mount}"
            );
            own_of(group, &mounts)
        };
        let whole =
            "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(
            found("0::/system.slice/x.service\n", whole),
            Some("/sys/fs/cgroup/system.slice/x.service".into())
        );
        assert_eq!(found("0::/\n", whole), Some("/sys/fs/cgroup/".into()));
        let part = "31 23 0:28 /docker/7 /cg rw - cgroup2 cgroup rw";
        assert_eq!(found("1:cpu:/\n0::/docker/7/sub\n", part), Some("/cg/sub".into()));
        assert_eq!(found("0::/elsewhere\n", part), None);
        assert_eq!(found("1:cpu:/\n", whole), None);
    }
}
