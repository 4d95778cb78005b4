"""The teacher's outputs, computed once: stored for seeded views of each image and replayed in training."""

from crossdistill.cache.build import Work as Work
from crossdistill.cache.build import build_cache as build_cache
from crossdistill.cache.fingerprint import fingerprint as fingerprint
from crossdistill.cache.format import CacheFormat as CacheFormat
from crossdistill.cache.store import TeacherCache as TeacherCache
