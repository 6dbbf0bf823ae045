"""Judging accuracy: errors against labels or the float network, beside holding the keyframe."""
