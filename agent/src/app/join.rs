//! Who this host is before its first beat: the settings completed by its enrolment, an identity that belongs
//! to another machine refused, and a host that was left a join token enrolled.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use heartwatch_common::auth::HostKey;
use heartwatch_common::config::ConfigError;
use heartwatch_common::time::Clock;
use rand::rngs::{StdRng, SysRng};

use super::{AppError, host_id, key_path};
use crate::config::{self, AgentConfig, Overrides};
use crate::enrol::{self, Enrolment, Machine, Plan, Url};
use crate::identity;

fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// The settings, with what this host's enrolment adds to them.
pub struct Joined {
    /// In force.
    pub config: AgentConfig,
    /// This host's enrolment, if it has one.
    pub enrolment: Option<Enrolment>,
    /// Which machine this is.
    pub machine: Machine,
}

impl Joined {
    /// Reads both. An enrolment of another machine adds nothing.
    pub fn read(overrides: &Overrides) -> Result<Self, AppError> {
        Self::with(config::read(overrides, &identity::hostname())?)
    }

    /// The same for who is about to enrol: an enrolment that cannot be used is none, as another takes its
    /// place.
    pub fn read_to_enrol(overrides: &Overrides) -> Result<Self, AppError> {
        let config = config::read(overrides, &identity::hostname())?;
        let enrolment = Enrolment::read(&config.state_dir, credentials().as_deref());
        Self::completed(config, enrolment.unwrap_or_default())
    }

    fn with(config: AgentConfig) -> Result<Self, AppError> {
        let enrolment = Enrolment::read(&config.state_dir, credentials().as_deref())?;
        Self::completed(config, enrolment)
    }

    fn completed(mut config: AgentConfig, enrolment: Option<Enrolment>) -> Result<Self, AppError> {
        let machine = Machine::this(&config.machine_id_file);
        if let Some(own) = enrolment.as_ref().filter(|e| !e.is_foreign(&machine)) {
            config.complete(own)?;
        }
        Ok(Self { config, enrolment, machine })
    }

    fn is_foreign(&self) -> bool {
        self.enrolment.as_ref().is_some_and(|e| e.is_foreign(&self.machine))
    }

    /// The enrolment, if it is this machine's.
    pub fn own(&self) -> Option<&Enrolment> {
        self.enrolment.as_ref().filter(|_| !self.is_foreign())
    }

    /// Where the key that beats is.
    pub fn key_path(&self) -> PathBuf {
        key_path(&self.config)
    }

    /// Where a key that is fetched is kept: credentials can't be written to.
    pub fn key_home(&self) -> PathBuf {
        self.config.key_file.clone().unwrap_or_else(|| self.config.state_dir.join("key"))
    }

    /// What is missing before it can beat; `None`: nothing.
    pub fn missing(&self, config_file: &str) -> Option<String> {
        let key = self.key_path();
        if self.config.controllers.is_empty() {
            Some(format!("{config_file} names no controller, and it has not enrolled"))
        } else if key.try_exists().is_ok_and(|exists| !exists) {
            Some(format!("there is no key in {}", key.display()))
        } else {
            None
        }
    }

    /// Reads all files that a start would read: what it would end with, and what it could not be run without
    /// once this host is enrolled.
    pub fn inspect(&self) -> (Vec<AppError>, Vec<AppError>) {
        let (mut wrong, mut odd) = (Vec::new(), Vec::new());
        // Who is invited hears from the controller where to beat to.
        if self.invitation().is_none() {
            wrong.extend(self.config.check_controllers().err().map(AppError::from));
        }
        let key = self.key_path();
        // A key that is still to be fetched by a token is no mistake, one that cannot be used is.
        let awaits = self.config.key_file.is_none() || self.invitation().is_some();
        if let Err(e) = identity::host_key(&key) {
            let is_missing = key.try_exists().is_ok_and(|exists| !exists);
            if is_missing && awaits { &mut odd } else { &mut wrong }.push(e.into());
        }
        if let Some((file, url)) = self.invitation() {
            wrong.extend(enrol::token(&file).err().map(AppError::from));
            let url = Url::from_str(&url).map_err(|e| ConfigError::value("enroll_url", e));
            wrong.extend(url.err().map(AppError::from));
        }
        if let Err(e) = host_id(&self.config) {
            // An image has no machine id before its first start.
            let named = self.config.machine_id_file != Path::new(identity::MACHINE_ID_PATH);
            if named { &mut wrong } else { &mut odd }.push(e.into());
        }
        if self.is_foreign()
            && self.invitation().is_none()
            && let Some(e) = &self.enrolment
        {
            wrong.push(AppError::Foreign { host: e.host });
        }
        (wrong, odd)
    }

    /// The join token that was left for this host, and where to bring it.
    fn invitation(&self) -> Option<(PathBuf, String)> {
        let credential = credentials().map(|dir| dir.join("join-token"));
        let mut files = [self.config.join_token_file.clone(), credential].into_iter().flatten();
        let file = files.find(|file| file.exists())?;
        let known = self.enrolment.as_ref().and_then(|e| e.url.clone());
        Some((file, self.config.enroll_url.clone().or(known)?))
    }

    /// Whether it can be run: all is there, or it can enrol by itself.
    pub fn can_run(&self, config_file: &str) -> Result<(), AppError> {
        match self.missing(config_file) {
            Some(missing) if self.invitation().is_none() && !self.is_foreign() => {
                Err(AppError::NotSetUp { missing })
            }
            _ => Ok(()),
        }
    }

    /// Enrols if that is needed and a token was left; refuses another machine's identity. Blocks.
    pub fn settle(self, overrides: &Overrides, clock: &dyn Clock) -> Result<Self, AppError> {
        let lacks = self.missing("the config").is_some();
        if !self.is_foreign() && !lacks {
            self.bind();
            return Ok(self);
        }
        let Some((file, url)) = self.invitation() else {
            return match &self.enrolment {
                Some(e) if self.is_foreign() => Err(AppError::Foreign { host: e.host }),
                // The config's own errors tell more than we could.
                _ => Ok(self),
            };
        };
        if self.is_foreign() {
            log::warn!("the identity kept here belongs to another machine: enrolling as ourselves");
        } else {
            log::info!("not enrolled yet: enrolling at {url}");
        }
        let done = self.enrol(&file, &url, None, clock)?;
        log::info!("enrolled as host {}", done.host);
        Self::read(overrides)
    }

    /// An identity that was made beforehand belongs to the first machine that runs it.
    fn bind(&self) {
        let Some(own) = self.own().filter(|e| e.machine.is_none()) else { return };
        let bound = Enrolment { machine: Some(self.machine), ..own.clone() };
        if let Err(e) = bound.write(&self.config.state_dir, enrol::owner(&self.config.state_dir)) {
            log::warn!("this host's identity is not bound to this machine: {e}");
        }
    }

    /// Enrols this host. Blocks.
    pub fn enrol(
        &self,
        token_file: &Path,
        url: &str,
        ca: Option<PathBuf>,
        clock: &dyn Clock,
    ) -> Result<Enrolment, AppError> {
        let url = Url::from_str(url).map_err(|e| ConfigError::value("enroll_url", e))?;
        let token = enrol::token(token_file)?;
        let present = self.present_key();
        let own = self.own().filter(|_| self.config.host_id.is_none()).map(|e| e.host);
        let host = match own {
            Some(host) => host,
            None => host_id(&self.config)?,
        };
        let mut rng: StdRng = rand::SeedableRng::try_from_rng(&mut SysRng)
            .map_err(|e| AppError::System { what: "draw randomness", source: e.into() })?;
        let plan = Plan {
            url,
            token,
            ca,
            host,
            name: self.config.name.clone(),
            machine: self.machine,
            present,
            state_dir: self.config.state_dir.clone(),
            key_file: self.key_home(),
        };
        Ok(plan.carry_out(clock, &mut rng)?)
    }

    /// The key that this host has as itself.
    fn present_key(&self) -> Option<HostKey> {
        if self.is_foreign() {
            return None;
        }
        identity::host_key(&self.key_path()).ok()
    }
}
