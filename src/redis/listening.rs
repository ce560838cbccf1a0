//! Contains what a worker does with announcements, and with what an operator has set.
//!
//! It listens over its own connection. Without announcements it reads again once a second. This
//! file must not know what follows from either: that is behind the listener.

use tokio::time::timeout;

use super::{
    announcement::Announcement,
    connection::{CallError, Prepared},
    names::Principal,
    worker::{CallResult, WorkerState},
};
use crate::{
    clock::Nanos,
    observe::{events, metrics},
};

/// What an operator says is read again after this time: an announcement may be lost in a cluster.
const REREAD: Nanos = Nanos::new(30 * Nanos::SECOND.get());
/// The same where no announcements come.
const REREAD_UNHEARD: Nanos = Nanos::SECOND;

impl WorkerState {
    /// Listens from now on, and catches up with what was said before.
    pub(super) fn listen(&mut self, Prepared { subscribed, settings }: Prepared) {
        if let Some(listener) = self.worker.listener.upgrade() {
            listener.forget_all();
        }
        let unread = match &settings {
            Ok(settings) => {
                self.apply(settings);
                None
            }
            // Another node of the cluster has them.
            Err(CallError::Redirect(_)) => None,
            Err(error) => Some(error),
        };
        if let Some(error) = subscribed.as_ref().err().or(unread) {
            events::redis_unheard(error.reason(), &self.reports.unheard, self.now());
        }
        self.plan_reread();
    }

    /// Another process, or this one, has changed something.
    pub(super) fn announced(&mut self, text: &str) {
        match Announcement::read(text) {
            Some(Announcement::Forget(principal)) => self.forget(principal),
            Some(Announcement::Pause { principal, pause, policy }) => {
                self.forget(principal);
                if let Some(listener) = self.worker.listener.upgrade() {
                    listener.pause(principal, &policy, Some(pause));
                }
            }
            Some(Announcement::Resume { principal, policy }) => {
                self.forget(principal);
                if let Some(listener) = self.worker.listener.upgrade() {
                    listener.pause(principal, &policy, None);
                }
            }
            Some(Announcement::Quotas) => self.read_settings(),
            None => {
                metrics::redis_announcement_ignored();
                events::redis_announcement_ignored(&self.reports.ignored, self.now());
            }
        }
    }

    /// What is known of a principal is true no more.
    fn forget(&mut self, principal: Principal) {
        if let Some(listener) = self.worker.listener.upgrade() {
            listener.forget(principal);
        }
        self.forgotten += 1;
        self.end_leases(principal);
    }

    fn end_leases(&mut self, principal: Principal) {
        let refunds = self.worker.leases.as_mut().map(|leases| leases.end(principal)).unwrap_or_default();
        for refund in refunds {
            self.settle(refund);
        }
    }

    /// Reads what an operator has set. Announcements that come meanwhile are one.
    fn read_settings(&mut self) {
        if let Some(again) = &mut self.reading {
            *again = true;
            return;
        }
        if self.link.is_some() {
            self.reading = Some(false);
        }
        let control = self.worker.control.clone();
        self.send(self.worker.call_timeout, |connection, within| async move {
            let read = timeout(within, connection.settings(&control)).await;
            CallResult::Read(read.unwrap_or(Err(CallError::Timeout)))
        });
    }

    pub(super) fn settings_read(&mut self, read: Result<Vec<(String, String)>, CallError>, after_a_pause: bool) {
        let again = self.reading.take() == Some(true);
        match read {
            Ok(settings) => {
                self.apply(&settings);
                self.answered();
            }
            // Another node has them, or they cannot be read, which was reported.
            Err(CallError::Redirect(_) | CallError::Connection(_) | CallError::Key(_)) => self.answered(),
            Err(error) => self.assess(Some(error), after_a_pause),
        }
        if again {
            self.read_settings();
        }
    }

    pub(super) fn apply(&self, settings: &[(String, String)]) {
        if let Some(listener) = self.worker.listener.upgrade() {
            listener.apply(settings);
        }
    }

    /// Forgets what may have been missed, and reads the settings.
    pub(super) fn reread(&mut self) {
        if let Some(listener) = self.worker.listener.upgrade() {
            listener.forget_all();
        }
        self.read_settings();
        self.plan_reread();
    }

    fn plan_reread(&mut self) {
        let subscribed = self.link.as_ref().map(|link| link.subscribed);
        let pause = subscribed.map(|subscribed| if subscribed { REREAD } else { REREAD_UNHEARD });
        self.rereads = pause.map(|pause| self.now().saturating_add(pause));
    }
}
