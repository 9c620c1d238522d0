"""Texts of the web page in English and Chinese."""

from __future__ import annotations

TEXTS = {
    "en": {
        "title": "A portrait sings",
        "intro": "Choose a portrait and a song, then press the button.",
        "portrait": "Portrait",
        "song": "Song",
        "choose": "Choose",
        "send": "Your own",
        "search": "Search",
        "send_picture": "Send a picture, or take one",
        "send_sound": "Send a sound or a video file",
        "record": "Record",
        "make": "Make the video",
        "cancel": "Cancel",
        "video": "Video",
        "download": "Download",
        "more": "More options",
        "seed": "Seed: another number gives another video",
        "speed": "Head rotation in degrees per frame (0: still, 2: wild; empty: default)",
        "framing": "Framing",
        "whole_picture": "The picture",
        "square": "The square around the face",
        "face": "Number of the face, the largest first (empty: the largest)",
        "start": "Start in the song, in seconds",
        "seconds": "Length in seconds (empty: to the end)",
        "label": "Notice in the video",
        "consent": "The person in the portrait agrees to this, and I will say that the video is generated.",
        "need_consent": "Please confirm first that the person in the portrait agrees.",
        "need_portrait": "Please choose or send a portrait.",
        "need_song": "Please choose or send a song.",
        "not_yours": "This file belongs to someone else; send your own.",
        "preparing": "Preparing ...",
        "loading": "Loading the weights ...",
        "progress": "{frames} of {total} frames, about {left} s left",
        "cut": "The song is longer than this server allows: the first {seconds} s are used.",
        "done": "Done: {seconds} s.",
        "cancelled": "Cancelled.",
        "failed": "The video could not be made because of an error on the server. Try again later.",
    },
    "zh": {
        "title": "让肖像唱歌",
        "intro": "选择一张肖像和一首歌,然后按下按钮。",
        "portrait": "肖像",
        "song": "歌曲",
        "choose": "选择",
        "send": "自己的文件",
        "search": "搜索",
        "send_picture": "上传图片或拍照",
        "send_sound": "上传音频或视频文件",
        "record": "录音",
        "make": "生成视频",
        "cancel": "取消",
        "video": "视频",
        "download": "下载",
        "more": "更多选项",
        "seed": "随机种子:不同的数字生成不同的视频",
        "speed": "头部转动速度,度/帧(0 为静止,2 为剧烈;留空为默认)",
        "framing": "画面",
        "whole_picture": "整张图片",
        "square": "仅脸部方框",
        "face": "第几张脸,最大的为 1(留空为最大的)",
        "start": "从歌曲的第几秒开始",
        "seconds": "时长(秒;留空到结尾)",
        "label": "视频中的提示文字",
        "consent": "肖像中的人同意这样使用,并且我会说明视频是生成的。",
        "need_consent": "请先确认肖像中的人同意。",
        "need_portrait": "请选择或上传一张肖像。",
        "need_song": "请选择或上传一首歌。",
        "not_yours": "这个文件属于别人,请上传自己的文件。",
        "preparing": "准备中……",
        "loading": "正在加载权重……",
        "progress": "第 {frames} / {total} 帧,约剩 {left} 秒",
        "cut": "歌曲超过服务器允许的长度:只使用前 {seconds} 秒。",
        "done": "完成:{seconds} 秒。",
        "cancelled": "已取消。",
        "failed": "服务器出错,无法生成视频。请稍后再试。",
    },
}
"""The texts by language and key."""


def language(header: str | None) -> str:
    """Returns "zh" if an Accept-Language header prefers Chinese to English, else "en"."""
    for part in (header or "").lower().split(","):
        name = part.split(";")[0].strip()[:2]
        if name in TEXTS:
            return name
    return "en"
