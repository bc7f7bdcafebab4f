//! The engine's own spans: it puts the context of each attempt's span on its request, in a header that the SDK does not read.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use holdfast_schemas::Traceparent;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper::{Request, Response};

use crate::traces;

/// The SDK's endpoint, whose handlers know the engine's span of their attempt.
#[derive(Clone)]
pub(super) struct TracedEndpoint<S>(pub(super) S);

/// The body of an answer: the SDK runs the handler while it is read.
pub(super) struct AttemptBody<B> {
    body: Pin<Box<B>>,
    span: Option<Traceparent>,
}

impl<S, B> Service<Request<Incoming>> for TracedEndpoint<S>
where
    S: Service<
            Request<Incoming>,
            Response = Response<B>,
            Error = Infallible,
            Future = Ready<Result<Response<B>, Infallible>>,
        >,
{
    type Response = Response<AttemptBody<B>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let header = request.headers().get("traceparent");
        let text = header.and_then(|value| value.to_str().ok());
        let span = text.and_then(|text| Traceparent::parse(text).ok());
        let answer = traces::in_attempt(span.as_ref(), || self.0.call(request));
        ready(answer.into_inner().map(|answer| {
            answer.map(|body| AttemptBody {
                body: Box::pin(body),
                span,
            })
        }))
    }
}

impl<B: Body> Body for AttemptBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Self { body, span } = &mut *self;
        traces::in_attempt(span.as_ref(), || body.as_mut().poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
