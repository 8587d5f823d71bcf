//! A session's state and its owner's token.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{AppState, Fault, HttpError, RequestId, read_body};
use crate::api::edge::bearer;
use crate::api::error::object;
use crate::session::{ClaimReport, Credential, Phase, Refusal, SessionReport, TxState};
use crate::units::{ClaimSeq, JobId, Signature};

/// `GET /v1/sessions/{job}`.
pub(in crate::api) async fn session_report(
    State(app): State<Arc<AppState>>,
    Extension(RequestId(id)): Extension<RequestId>,
    Path(job): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, HttpError> {
    let credential = credential(&headers);
    let answer = async { app.sessions.report(job_of(&job)?, &credential).await };
    let report = answer.await.map_err(|refusal| HttpError::new(refusal, &id))?;
    Ok(Json(report_json(&report, app.sessions.chain_id())))
}

/// `GET /v1/sessions/{job}/proofs/{seq}`.
pub(in crate::api) async fn session_proof(
    State(app): State<Arc<AppState>>,
    Extension(RequestId(id)): Extension<RequestId>,
    Path((job, seq)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let credential = credential(&headers);
    let answer = async {
        let wrong = |_| Refusal::invalid("seq", "seq must be the number of a claim");
        let seq = ClaimSeq::new(seq.parse().map_err(wrong)?);
        app.sessions.proof(job_of(&job)?, seq, &credential).await
    };
    let blob = answer.await.map_err(|refusal| HttpError::new(refusal, &id))?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], blob).into_response())
}

/// `POST /v1/sessions/{job}/challenge`.
pub(in crate::api) async fn session_challenge(
    State(app): State<Arc<AppState>>,
    Extension(RequestId(id)): Extension<RequestId>,
    Path(job): Path<String>,
) -> Result<Json<Value>, HttpError> {
    let answer = async { app.sessions.challenge(job_of(&job)?).await };
    let challenge = answer.await.map_err(|refusal| HttpError::new(refusal, &id))?;
    let expires_at = challenge.expires_at.get();
    Ok(Json(json!({ "challenge": challenge.text, "expires_at": expires_at })))
}

/// `POST /v1/sessions/{job}/token`.
pub(in crate::api) async fn session_token(
    State(app): State<Arc<AppState>>,
    Extension(RequestId(id)): Extension<RequestId>,
    Path(job): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, HttpError> {
    let answer = async {
        let job = job_of(&job)?;
        let fields = object(&read_body(&app, &headers, body).await?)?;
        let text = |key| fields.get(key).and_then(Value::as_str);
        let challenge = text("challenge")
            .ok_or_else(|| Refusal::invalid("challenge", "challenge is required"))?;
        let signature = text("signature").and_then(Signature::parse).ok_or_else(|| {
            Refusal::invalid("signature", "signature must be 65 bytes in hex (r, s, v)")
        })?;
        let issued = app.sessions.issue_token(job, challenge, &signature).await?;
        let token = issued.token.expose_secret();
        Ok(Json(json!({ "token": token, "expires_at": issued.expires_at.get() })))
    };
    answer.await.map_err(|fault: Fault| HttpError::new(fault, &id))
}

fn credential(headers: &HeaderMap) -> Credential {
    bearer(headers)
        .map_or(Credential::JobNumber, |token| Credential::Token(token.to_owned().into()))
}

fn job_of(text: &str) -> Result<JobId, Refusal> {
    JobId::parse(text).map_err(|error| Refusal::invalid("job_id", error.to_string()))
}

fn report_json(report: &SessionReport, chain_id: Option<u64>) -> Value {
    let completion = report
        .completion
        .as_ref()
        .map(|(tx, state)| json!({ "tx": tx.to_string(), "status": tx_state(*state) }));
    json!({
        "job_id": report.job.get(),
        "session_id": report.job.to_string(),
        "chain_id": chain_id,
        // A session names no model before contract v7.
        "model": null,
        // Without vouchers of the client, the contract trusts the host's count.
        "mode": "trusted-host",
        "phase": phase(report.phase),
        "depositor": report.depositor.to_string(),
        "payment_token": report.payment_token.to_string(),
        // Past 2^53, where JavaScript numbers end, so as text.
        "price_per_token": report.price.get().to_string(),
        "deposit": report.deposit.get().to_string(),
        "tokens_used": report.tokens_recorded.get(),
        "tokens_recorded": report.tokens_recorded.get(),
        "tokens_claimed": report.tokens_claimed.get(),
        "tokens_confirmed": report.tokens_confirmed.get(),
        "tokens_on_chain": report.tokens_on_chain.get(),
        "tokens_affordable": report.tokens_affordable.get(),
        "tokens_forfeited": report.tokens_forfeited.get(),
        "claims": report.claims.iter().map(claim).collect::<Vec<_>>(),
        "completion": completion,
        "next_deadline": report.deadline.map(crate::units::ChainTime::get),
    })
}

fn claim(report: &ClaimReport) -> Value {
    json!({
        "seq": report.seq.get(),
        "tokens": report.tokens.get(),
        "tx": report.tx.to_string(),
        "status": tx_state(report.state),
    })
}

const fn tx_state(state: TxState) -> &'static str {
    match state {
        TxState::Prepared => "broadcast",
        TxState::Included { .. } => "included",
        TxState::Confirmed => "confirmed",
        TxState::Rejected(_) => "rejected",
    }
}

const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Active => "active",
        Phase::Draining => "draining",
        Phase::Settling => "settling",
        Phase::Completed => "completed",
        Phase::Halted => "halted",
    }
}
