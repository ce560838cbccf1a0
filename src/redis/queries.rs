//! Contains what a worker does with queries: of operators, and of bans.
//!
//! A query that fails says whether anything may have changed. This file must not know what is
//! asked.

use tokio::{sync::oneshot, time::timeout};

use super::{
    connection::CallError,
    protocol::{Element, Query},
    worker::{CallResult, QueryError, QueryRequest, WorkerState},
};
use crate::observe::events;

impl WorkerState {
    /// Does what an operator asks for, over a connection that works.
    pub(super) fn query(&mut self, request: QueryRequest) {
        self.end_rest();
        if let (false, Some(patience)) = (self.checking, self.patience_of_a_check()) {
            self.check(patience);
        }
        if self.link.is_none() || self.checking {
            self.unasked.push(request);
            return;
        }
        let left = request.deadline.since(self.now());
        if left.is_zero() {
            return self.refuse(request, "its time was over before it could be sent");
        }
        self.send(left.into(), |mut connection, within| async move {
            let reply = timeout(within, connection.query(&request.query)).await;
            CallResult::Queried { request, reply: reply.unwrap_or(Err(CallError::Timeout)) }
        });
    }

    /// Refuses the queries that were not sent: all, or those whose time is over.
    pub(super) fn refuse_unasked(&mut self, reason: &str, all: bool) {
        let now = self.now();
        let is_given_up = |request: &QueryRequest| request.reply.as_ref().is_some_and(oneshot::Sender::is_closed);
        let is_over = |request: &QueryRequest| all || request.deadline <= now || is_given_up(request);
        let (over, rest) = std::mem::take(&mut self.unasked).into_iter().partition(is_over);
        self.unasked = rest;
        let over: Vec<QueryRequest> = over;
        for request in over {
            self.refuse(request, reason);
        }
    }

    /// Nothing was sent.
    fn refuse(&mut self, request: QueryRequest, reason: &str) {
        if request.reply.is_none() {
            events::redis_ban_lost(reason, &self.reports.bans, self.now());
        }
        request.answer(Err(QueryError::Refused(reason.to_owned())));
    }

    pub(super) fn queried(
        &mut self,
        request: QueryRequest,
        reply: Result<Vec<Element>, CallError>,
        after_a_pause: bool,
    ) {
        let error = match reply {
            Ok(reply) => {
                if let Query::Settings { .. } = request.query {
                    // Here, so that what was read earlier is applied earlier.
                    self.apply(&pairs(&reply));
                }
                request.answer(Ok(reply));
                None
            }
            Err(error) => {
                let failed = match &error {
                    CallError::Redirect(redirect) if self.worker.cluster.is_some() => {
                        QueryError::Redirected(redirect.clone())
                    }
                    CallError::Closed | CallError::Io(_) | CallError::Protocol | CallError::Timeout => {
                        QueryError::Unanswered
                    }
                    refused => QueryError::Refused(refused.reason().to_owned()),
                };
                if request.reply.is_none() {
                    events::redis_ban_lost(error.reason(), &self.reports.bans, self.now());
                }
                request.answer(Err(failed));
                Some(error)
            }
        };
        match error {
            // What an operator may not do, requests may still do.
            Some(CallError::Connection(_) | CallError::Key(_)) => self.answered(),
            // An operator may have waited for less than a request does. A connection that is dead
            // is found by those, and by the check of an idle one.
            Some(CallError::Timeout) => {}
            error => self.assess(error, after_a_pause),
        }
    }
}

fn pairs(texts: &[Element]) -> Vec<(String, String)> {
    let pair = |pair: &[Element]| match pair {
        [Element::Text(field), Element::Text(value)] => Some((field.clone(), value.clone())),
        _ => None,
    };
    texts.chunks(2).filter_map(pair).collect()
}
