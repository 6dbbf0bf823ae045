/* The C interface of the resq-tvm runtime (C99). Compile src/resq.cc and src/resq_c.cc beside
 * your program and link it with a C++ linker; docs/deploy.md has the commands.
 *
 * Functions that can fail return RESQ_OK or another code, and resq_last_error() then tells why in
 * one line. No exception leaves them. Pointers to results are given through the last argument and
 * left alone on failure. */
#ifndef RESQ_H_
#define RESQ_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum resq_code {
  RESQ_OK = 0,
  RESQ_ARTIFACT_ERROR = 1, /* missing, truncated, altered, of another version */
  RESQ_TARGET_ERROR = 2,   /* this CPU lacks a feature */
  RESQ_CONFIG_ERROR = 3,   /* an option is out of range; an argument is NULL or no such number */
  RESQ_FRAME_ERROR = 4,    /* wrong size, NaN, infinity: the session is as it was */
  RESQ_RUNTIME_ERROR = 5   /* anything else */
} resq_code;

/* Of the latest call in this thread that failed; valid until the next one fails. */
const char* resq_last_error(void);

/* An artifact may be shared by sessions in any threads, and freed before them. */
typedef struct resq_artifact resq_artifact;

/* Checks an artifact (NAME.resq/) and loads it. */
resq_code resq_artifact_load(const char* path, resq_artifact** artifact);
void resq_artifact_free(resq_artifact* artifact); /* NULL is fine */

/* A network input or output, float32. Strings and shape live as long as the artifact. */
typedef struct resq_tensor_info {
  const char* name;
  const char* layout; /* "NCHW", "NHWC" or "" */
  const int64_t* shape;
  size_t dimensions;
  size_t size; /* in elements */
} resq_tensor_info;

size_t resq_input_count(const resq_artifact* artifact);
size_t resq_output_count(const resq_artifact* artifact);
resq_code resq_input_info(const resq_artifact* artifact, size_t number, resq_tensor_info* info);
resq_code resq_output_info(const resq_artifact* artifact, size_t number, resq_tensor_info* info);

/* Zeros mean: the artifact's period, every CPU, thresholds as they are, the guard, keyframes by
 * period, every frame computed. From threshold_scale on all is for artifacts that choose bits;
 * docs/streams.md tells the rules. */
typedef struct resq_options {
  int period;            /* a keyframe every so many frames */
  int threads;           /* per frame */
  float threshold_scale; /* more leaves out more */
  int no_guard;          /* 1: residual frames whatever they cost */
  int adaptive;          /* 1: keyframes where too much has changed */
  int min_distance;      /* from one chosen keyframe to the next at least */
  int max_distance;      /* adaptive: at most; four periods by default */
  const double* repeat;  /* share up to which a changed frame gets the latest output; or NULL */
} resq_options;

/* One stream; one thread at a time may use it. */
typedef struct resq_session resq_session;

resq_code resq_session_new(const resq_artifact* artifact, const resq_options* options_or_null,
                           resq_session** session);
void resq_session_free(resq_session* session); /* NULL is fine */

/* Runs one frame: the values of every network input, in the source model's layout. */
resq_code resq_session_run(resq_session* session, const float* const* inputs, size_t count);

/* The values of an output of the latest frame; valid until the next one or the session's end. */
resq_code resq_session_output(const resq_session* session, size_t number, const float** values);

/* What the session did with its latest frame. */
typedef struct resq_frame_info {
  const char* kind;    /* "keyframe", "residual", "frame", "repeat" */
  const char* reason;  /* why it is no residual frame, as in docs/streams.md; "" */
  int64_t index;       /* in the stream, lost frames counted */
  double ms;           /* of the network itself */
  double changed;      /* share of the input that changed; -1 if nobody looked */
  double predicted_ms; /* of a residual frame; -1 where `changed` is not about that */
} resq_frame_info;

resq_code resq_session_last(const resq_session* session, resq_frame_info* info);

resq_code resq_session_force_keyframe(resq_session* session); /* the next frame */
resq_code resq_session_skip(resq_session* session);  /* counts a lost frame; then a keyframe */
resq_code resq_session_reset(resq_session* session); /* forgets the stream */

#ifdef __cplusplus
}
#endif

#endif /* RESQ_H_ */
