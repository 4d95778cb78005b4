"""The methods. Adding one requires its file and one line in `registry.py`."""

from crossdistill.methods.base import Method as Method
from crossdistill.methods.choice import MethodChoice as MethodChoice
from crossdistill.methods.choice import check_option_keys as check_option_keys
from crossdistill.methods.choice import choose_method as choose_method
from crossdistill.methods.choice import options_for as options_for
from crossdistill.methods.choice import usable_methods as usable_methods
from crossdistill.methods.registry import METHODS as METHODS
from crossdistill.methods.registry import NONE as NONE
from crossdistill.methods.registry import find_method as find_method
from crossdistill.methods.registry import list_methods as list_methods
from crossdistill.methods.registry import methods_without_labels as methods_without_labels
from crossdistill.methods.registry import options_key as options_key
