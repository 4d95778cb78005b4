"""Images in: data sets, splits, transforms, seeded batches."""

from crossdistill.data.datasets import Images as Images
from crossdistill.data.splits import ImageData as ImageData
from crossdistill.data.splits import load_data as load_data
